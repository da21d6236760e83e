"""`triptych up`: a fleet in the foreground. Ctrl-C drains it, a second one at a terminal kills it.

Process managers send SIGTERM, some of them twice, and a terminal that goes away SIGHUP: each drains, however often.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from triptych_client.commands.session import fleet_settings
from triptych_client.fleet import Fleet, FleetPlan
from triptych_client.voice import Voice, say


def run(args: argparse.Namespace) -> None:
    """Run until a signal comes or a process can't be kept running. Raises KeyboardInterrupt where it was killed."""
    plan = FleetPlan(
        model=args.model,
        state=Path(args.state),
        address=args.endpoint,
        result_url=args.result_url,
        metrics_port=args.metrics_port,
        tls=args.tls,
        tokens=args.tokens,
        client_address=args.client_endpoint,
        drain_timeout_s=args.drain_timeout_s,
        **fleet_settings(args),
    )
    if shortage := plan.shared_memory_shortage():
        say(shortage)
    with Voice() as voice:
        asyncio.run(_up(plan, voice))


async def _up(plan: FleetPlan, voice: Voice) -> None:
    stop, killed = asyncio.Event(), asyncio.Event()
    fleet = Fleet(plan, notice=voice.say)

    def on_signal(number: int) -> None:
        if stop.is_set() and number == signal.SIGINT and _has_person():
            voice.say("killing all processes")
            killed.set()
            fleet.supervisor.kill_now()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        if await _unless(stop, fleet.start()):
            more = f" and, for clients with a token, {plan.client_address}" if plan.client_address else ""
            voice.say(f"the fleet is ready on {fleet.endpoint}{more}; logs are in {plan.log_folder}; Ctrl-C drains it")
            await _unless(stop, fleet.supervisor.wait())
        voice.say("draining" + ("; Ctrl-C again kills" if _has_person() else ""))
        await fleet.stop()
    finally:
        await fleet.kill()
    if killed.is_set():
        raise KeyboardInterrupt


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until its end (true, or its error) or until `stop` (false)."""
    running, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
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
    """Whether a Ctrl-C may come from somebody at a terminal."""
    return any(os.isatty(descriptor) for descriptor in (0, 2))
