"""`triptych up`: a fleet in the foreground. Ctrl-C drains it, a second one at a terminal kills it.

Process managers send SIGTERM, some of them twice, and a terminal that goes away SIGHUP: each drains, however often.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any

from triptych import config
from triptych.config import ControllerConfig
from triptych.errors import InvalidRequest
from triptych.roles import ROLE_NAMES
from triptych.transport import shared_memory
from triptych_client.commands.session import add_devices, add_fleet, fleet_of
from triptych_client.fleet_plan import (
    COMMON_SETTINGS,
    CONTROLLER_SETTINGS,
    SETTING_BY_NAME,
    TEXT_ENCODER_SETTINGS,
    WORKER_SETTINGS,
    FleetPlan,
)
from triptych_client.local_fleet import Fleet
from triptych_client.ray_fleet import RayFleet
from triptych_client.terminal import Voice, say

FLAG_NAMES = {"address": "endpoint", "client_address": "client_endpoint"}
"""Settings whose flags have the names that clients know."""
LOCAL, RAY = "local", "ray"
ABOUTS = {
    "state": "journal, results, logs",
    "tls": "mutual TLS; a folder that `triptych certs init` made (default: no TLS)",
    "tokens": "clients' tokens; a file that `triptych tokens add` made",
    "metrics_port": "Prometheus: the controller's port; workers take the next ones (default: none)",
    "lame_duck_s": "time between SIGTERM and the drain, for balancers to see NOT_SERVING (default: 0)",
    "threads": "torch threads of each worker (default: the cores, shared)",
    "device": "torch device of all roles",
    "dtype": "element type of the weights of all roles",
}
"""Settings that mean more for a fleet than for one process."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for everything that a fleet can be told."""
    add_fleet(parser)
    parser.add_argument(
        "--on", choices=(LOCAL, RAY), default=LOCAL, help="this machine, or a Ray cluster (default: %(default)s)"
    )
    parser.add_argument("--ray-address", default="", metavar="ADDRESS", help="the cluster; default: this machine's")
    for role in ROLE_NAMES:
        parser.add_argument(f"--{role}s", type=int, metavar="N", help=f"{role} processes (default: 1)")
    parser.add_argument(
        "--text-encoders",
        type=int,
        default=0,
        metavar="N",
        help="1 for a process that runs the text encoders of all encoders (default: each encoder runs its own)",
    )
    config.add_flags(parser, "every process", COMMON_SETTINGS, FLAG_NAMES, ABOUTS)
    config.add_flags(parser, "the controller", CONTROLLER_SETTINGS, FLAG_NAMES, ABOUTS)
    config.add_flags(parser, "the workers", WORKER_SETTINGS, FLAG_NAMES, ABOUTS)
    config.add_flags(parser, "the text encoder", TEXT_ENCODER_SETTINGS, FLAG_NAMES, ABOUTS)
    add_devices(parser)


def run(args: argparse.Namespace) -> None:
    """Run until a signal comes or a process can't be kept running. Raises KeyboardInterrupt where it was killed."""
    settings = config.given(vars(args), SETTING_BY_NAME.values(), FLAG_NAMES)
    defaults = {"model": "", "state": ControllerConfig.state, "address": ControllerConfig.address}
    wanted = fleet_of(args, settings)
    plan = FleetPlan(**{**defaults, **wanted.settings}, roles=wanted.roles, text_encoders=args.text_encoders)
    if args.on == RAY and args.text_encoders:
        raise InvalidRequest("text_encoders", args.text_encoders, "0 on Ray: start one by hand (docs/engines.md)")
    try:
        plan.log_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest("state", str(plan.state), f"a folder, or a name for one ({error.strerror})") from error
    if args.on == LOCAL and (shortage := shared_memory.shortage(plan.arenas_bytes)):
        say(shortage)
    with Voice() as voice:
        fleet = Fleet(plan, voice.say) if args.on == LOCAL else RayFleet(plan, args.ray_address, voice.say)
        asyncio.run(_up(fleet, voice))


async def _up(fleet: Fleet | RayFleet, voice: Voice) -> None:
    plan = fleet.plan
    stop = asyncio.Event()
    killed = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set() and number == signal.SIGINT and _has_person():
            voice.say("killing all processes")
            killed.set()
            fleet.kill_now()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        if await _unless(stop, fleet.start()):
            more = f" and, for clients with a token, {address}" if (address := plan.config.client_address) else ""
            voice.say(f"the fleet is ready on {fleet.endpoint}{more}; logs are in {plan.log_folder}; Ctrl-C drains it")
            await _unless(stop, fleet.wait())
        voice.say("draining" + ("; Ctrl-C again kills" if _has_person() else ""))
        await fleet.stop()
    finally:
        await fleet.kill()
    if killed.is_set():
        raise KeyboardInterrupt


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until its end (true, or its error) or until `stop` (false)."""
    running = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return running.done()
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)


def _has_person() -> bool:
    """Whether a Ctrl-C may come from a person at a terminal."""
    return any(os.isatty(descriptor) for descriptor in (0, 2))
