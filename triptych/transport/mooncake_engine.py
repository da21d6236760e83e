"""Mooncake's Transfer Engine, and the only file that imports it.

Facts that shape this file:

* The engine uses RDMA if it finds a device, even if asked for TCP, unless `MC_FORCE_TCP` is in the environment at its
  start. Asked for RDMA without a device, it silently uses TCP. So the protocol in use is looked up afterwards.
* It reads its settings from the environment only.
* Of a host's addresses it takes the IPv4 ones, or with `MC_USE_IPV6` the IPv6 ones. A transfer between two that take
  different ones returns -1.
* A transfer to a dead peer, to one of the other protocol or outside registered memory returns -1 within milliseconds. A
  stopped peer is noticed only by the engine's own timeout.
* It listens on all interfaces and has no authentication: firewall its ports, or use a private network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from triptych import rdma_devices
from triptych.errors import InvalidRequest, MissingExtra, NoCard, TransferFailed, WrongState
from triptych.transport.arena import Arena

log = logging.getLogger(__name__)

TRANSFER_TIMEOUT_S = 30
"""The engine's own bound of a transfer. A silent peer holds a thread for so long."""
_FORCE_TCP = "MC_FORCE_TCP"
_IS_TCP_FORCED = bool(os.environ.get(_FORCE_TCP))
"""Whether the user has set it, before `_set_environment` does."""
_SETTINGS = {
    "MC_TRANSFER_TIMEOUT": str(TRANSFER_TIMEOUT_S),
    "MC_TCP_PROGRESS_TIMEOUT_SEC": str(TRANSFER_TIMEOUT_S),
    "MC_LOG_LEVEL": "ERROR",
}
"""The engine's settings. Only this module of the project writes to the environment."""
_VERBS_DEVICES = "/dev/infiniband/uverbs"
_PACKAGE = "mooncake-transfer-engine-non-cuda"
_LIBRARIES = "the system libraries libibverbs1, libnuma1 and libcurl4"


class MooncakeEngine:
    """The engine of a process. Close it before its registered memory is unmapped."""

    def __init__(self, host: str, wanted: str = "tcp", device: str = "") -> None:
        """Start it; `host` is the name or address under which other hosts reach this one.

        `wanted` is `tcp`, `rdma` or `auto`: RDMA if there is a device for it. `device` is a setting of `rdma_devices`;
        without it Mooncake uses the devices near the memory. Raises MissingExtra without the package, InvalidRequest
        for a device that isn't there, WrongState if the engine can't be loaded or started, or uses TCP although RDMA
        is wanted.
        """
        place, self.reason = _place(wanted, device)
        """Why its protocol is in use."""
        _set_environment(host, place, device)  # before the import, which reads the log level
        opened_before = _opened_devices()
        self._engine = load()()
        self._registered: list[int] = []
        asked = "tcp" if place is None else "rdma"
        name = place.device if place is not None and device else ""
        if self._engine.initialize(host, "P2PHANDSHAKE", asked, name) != 0:
            raise WrongState(f"Mooncake can't start on host {host!r}; its log on stderr says why")
        taken = sorted(_opened_devices() - opened_before)
        if place is not None:
            self.reason = f"it took {', '.join(taken)}" if taken else "Mooncake found no RDMA device that it could use"
        if wanted == "rdma" and not taken:
            raise WrongState(f"Mooncake was asked for rdma and took tcp: {self.reason}; its log on stderr says more")
        self.session = f"{host}:{self._engine.get_rpc_port()}"
        self.protocol = "rdma" if taken else "tcp"
        """The protocol in use. Both ends of a transfer must use the same."""

    def register(self, address: int, size_bytes: int) -> None:
        """Make memory readable for peers and usable for `read`. Call it once at the start, not for each request."""
        if self._engine.register_memory(address, size_bytes) != 0:
            raise WrongState(f"Mooncake refused to register {size_bytes} bytes; its log on stderr says why")
        self._registered.append(address)

    def read(self, session: str, address: int, peer_address: int, size_bytes: int) -> None:
        """Copy a peer's registered memory to `address`. Blocks without the GIL. Raises TransferFailed."""
        status = self._engine.transfer_sync_read(session, address, peer_address, size_bytes)
        if status != 0:
            raise TransferFailed(f"Mooncake could not read {size_bytes} bytes from {session} (status {status})")

    def close(self) -> None:
        """Unregister the memory and stop the engine. Peers can't read from it any more."""
        for address in self._registered:
            self._engine.unregister_memory(address)
        self._registered.clear()
        self._engine = None


def load() -> Any:
    """Mooncake's class. Raises MissingExtra without the package, WrongState if it can't be loaded."""
    try:
        from mooncake.engine import TransferEngine
    except ModuleNotFoundError as error:
        raise MissingExtra(_PACKAGE, "serve", "the mover mooncake") from error
    except ImportError as error:
        raise WrongState(f"Mooncake can't be loaded ({error}); it needs {_LIBRARIES}") from error
    return TransferEngine


def version() -> str:
    """The name and version of the installed wheel of Mooncake."""
    for name in (_PACKAGE, "mooncake-transfer-engine"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "of unknown version"


def open_engine(arena: Arena, host: str, wanted: str = "tcp", device: str = "") -> MooncakeEngine:
    """Start an engine and register the arena. `auto` falls back to TCP if the card can't register the arena.

    Raises as `MooncakeEngine` does.
    """
    engine = MooncakeEngine(host, wanted, device)
    try:
        if engine.protocol == "rdma":
            arena.reserve()
        engine.register(arena.base_address, arena.size_bytes)
    except WrongState as error:
        engine.close()
        if wanted != "auto" or engine.protocol == "tcp":
            raise
        log.warning("Mooncake goes over TCP: %s", error)
        arena.unreserve()
        engine = MooncakeEngine(host, "tcp")
        engine.reason = str(error)
        engine.register(arena.base_address, arena.size_bytes)
    return engine


def _place(wanted: str, device: str) -> tuple[rdma_devices.Place | None, str]:
    """The place for RDMA, or None and the reason for TCP. Raises InvalidRequest, and WrongState if RDMA is required."""
    if wanted not in ("auto", "rdma", "tcp"):
        raise InvalidRequest("mooncake", wanted, "auto, rdma or tcp")
    if wanted == "tcp":
        return None, "it was asked for"
    if wanted == "auto" and _IS_TCP_FORCED:
        return None, f"{_FORCE_TCP} is set"
    try:
        return rdma_devices.choose(device, rdma_devices.ports()), ""
    except NoCard as error:
        if wanted == "rdma":
            raise
        return None, str(error)


def _set_environment(host: str, place: rdma_devices.Place | None, device: str) -> None:
    os.environ.update(_SETTINGS)
    if _has_ipv6_only(host):
        os.environ.setdefault("MC_USE_IPV6", "1")
    if place is None:
        os.environ[_FORCE_TCP] = "1"
        return
    os.environ.pop(_FORCE_TCP, None)
    if device:
        os.environ.update({"MC_IB_PORT": str(place.port), "MC_GID_INDEX": str(place.gid.index)})


def _has_ipv6_only(host: str) -> bool:
    """Whether a host, as it stands before a port, has an IPv6 address and no other."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None)
    except OSError:  # whoever calls it will say so
        return False
    return {family for family, *_ in found} == {socket.AF_INET6}


def _opened_devices() -> Counter[str]:
    """The RDMA devices that this process has open, and how often. The rings may have one open, too."""
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # closed since it was listed
            continue
        if target.startswith(_VERBS_DEVICES):
            found[target.removeprefix("/dev/infiniband/")] += 1
    return found
