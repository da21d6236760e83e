"""`triptych up`: a fleet in the foreground. Ctrl-C drains it, a second one kills it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from triptych_client.commands.session import fleet_settings
from triptych_client.fleet import Fleet, FleetPlan


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
        _say(shortage)
    asyncio.run(_up(plan))


async def _up(plan: FleetPlan) -> None:
    stop, killed = asyncio.Event(), asyncio.Event()
    fleet = Fleet(plan, notice=_say)

    def on_signal() -> None:
        if stop.is_set():
            _say("killing all processes")
            killed.set()
            fleet.supervisor.kill_now()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        if await _unless(stop, fleet.start()):
            more = f" and, for clients with a token, {plan.client_address}" if plan.client_address else ""
            _say(f"the fleet is ready on {fleet.endpoint}{more}; logs are in {plan.log_folder}; Ctrl-C drains it")
            await _unless(stop, fleet.supervisor.wait())
        _say("draining; Ctrl-C again kills")
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


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
