"""`triptych doctor`: what this machine has for a fleet, and what to install."""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from triptych import rdma_devices
from triptych.config import WorkerConfig
from triptych.errors import MissingExtra, NoCard, TriptychError
from triptych.limits import bytes_text
from triptych.roles import ROLE_NAMES
from triptych.transport import shared_memory
from triptych.transport.shared_memory import SHARED_MEMORY
from triptych_client.commands.output import print_json, show
from triptych_client.tables import Table

CAP_IPC_LOCK = 14
"""Number of the capability, in capabilities(7)."""
LOCK_ADVICE = "for RDMA: ulimit -l unlimited (LimitMEMLOCK=infinity in systemd)"
GOOD = "ok"
ABSENT = "absent"
BAD = "problem"


class Finding(NamedTuple):
    """One thing that was looked for."""

    what: str
    state: str
    """`ok`, `absent` (something else serves in its place) or `problem`."""
    found: str
    advice: str = ""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the form of the answer."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Look at everything; print a table, lines, or JSON."""
    findings = [look() for look in CHECKS]
    if args.json:
        print_json([finding._asdict() for finding in findings])
        return
    rows = [(one.what, one.state, tuple(one.found.split("\n")), one.advice) for one in findings]
    show(Table("doctor", ("what", "state", "found", "to do"), rows, "this machine", prose=("found", "to do")))


def _devices() -> Finding:
    ports = rdma_devices.ports()
    if not ports:
        return Finding(
            "RDMA devices", ABSENT, f"none in {rdma_devices.DEVICES}", "nothing: rings and rooms go over TCP"
        )
    lines = [
        f"{port.device}:{port.number} {'active' if port.is_active else 'down'}, {port.link_layer}, "
        + (", ".join(f"GID {gid.index} {gid} ({gid.kind})" for gid in port.gids) or "no GID")
        for port in ports
    ]
    try:
        place = rdma_devices.choose("", ports)
    except NoCard as error:
        return Finding("RDMA devices", BAD, "\n".join(lines), f"{error}; bring the link up and give it an address")
    return Finding("RDMA devices", GOOD, "\n".join([*lines, f"{place} would be used; --rdma-device takes another"]))


def _bindings() -> Finding:
    from triptych.rings.verbs import card

    reasons = {name: found for name in card.BINDINGS if isinstance(found := card.find_binding(name), str)}
    working = [name for name in card.BINDINGS if name not in reasons]
    text = "; ".join([*(f"{name} works" for name in working), *reasons.values()])
    return Finding("verbs binding", GOOD if working else ABSENT, text, "" if working else card.INSTALL)


def _card() -> Finding:
    from triptych.rings.layout import Geometry
    from triptych.rings.verbs.card import open_card, refusal
    from triptych.rings.verbs.driver import Connection

    try:
        card = open_card()
    except NoCard as error:
        return Finding("rings over RDMA", ABSENT, str(error), "nothing: workers ask the controller for work by gRPC")
    try:
        Connection(card, Geometry()).close()
    except OSError as error:
        return Finding("rings over RDMA", BAD, f"{refusal(card.place, error)} (by {card.binding})", LOCK_ADVICE)
    finally:
        card.close()
    return Finding("rings over RDMA", GOOD, f"{card.place} takes a queue pair, by {card.binding}")


def _locked_memory() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or _is_above_limits():
        return Finding("locked memory", GOOD, "unlimited")
    has_device = bool(rdma_devices.ports())
    advice = LOCK_ADVICE if has_device else ""
    return Finding("locked memory", BAD if has_device else GOOD, f"{bytes_text(limit)} a process", advice)


def _is_above_limits() -> bool:
    """Whether this process has the capability to lock memory beyond its limit, as root usually has."""
    (held,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(held, 16) >> CAP_IPC_LOCK & 1)


def _shared_memory() -> Finding:
    try:
        total, free = shared_memory.space()
    except OSError as error:
        return Finding("shared memory", BAD, f"{SHARED_MEMORY}: {error.strerror}", f"mount a tmpfs on {SHARED_MEMORY}")
    text = f"{bytes_text(free)} free in {SHARED_MEMORY}, of {bytes_text(total) if total else 'no limit'}"
    if shared_memory.shortage(len(ROLE_NAMES) * WorkerConfig.arena_bytes):  # container runtimes often give 64 MB
        advice = f"fewer than three arenas of the default size; {shared_memory.REMEDY}"
        return Finding("shared memory", BAD, text, advice)
    if free < WorkerConfig.arena_bytes:
        return Finding("shared memory", BAD, text, "see who has the rest; work waits for it")
    return Finding("shared memory", GOOD, text)


def _mooncake() -> Finding:
    from triptych.transport import mooncake_engine

    try:
        mooncake_engine.load()
    except MissingExtra as error:
        return Finding("Mooncake", ABSENT, "not installed; rooms go by shared memory and gRPC", str(error))
    except TriptychError as error:
        return Finding("Mooncake", BAD, str(error), "install those libraries")
    return Finding("Mooncake", GOOD, mooncake_engine.version())


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", ABSENT, "not installed: this machine can be a client", "pip install 'triptych[serve]'")
    return Finding("torch", GOOD, metadata.version("torch"))


def _gpu() -> Finding:
    if importlib.util.find_spec("torch") is None:
        has_tool = shutil.which("nvidia-smi") is not None
        return Finding("GPU", ABSENT, "nvidia-smi is there, torch isn't" if has_tool else "torch isn't installed")
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", ABSENT, "torch sees none", "nothing, if the CPU is to do the work")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("GPU", GOOD, ", ".join(f"cuda:{index} {name}" for index, name in enumerate(names)))


CHECKS: tuple[Callable[[], Finding], ...] = (
    _torch,
    _gpu,
    _shared_memory,
    _mooncake,
    _devices,
    _bindings,
    _card,
    _locked_memory,
)
