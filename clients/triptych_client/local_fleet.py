"""A fleet on this machine: starts a plan's processes, keeps them running, drains them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from triptych import rpc
from triptych.errors import DeadlinePassed, JournalFull, MissingExtra, TriptychError, Unavailable
from triptych.rpc.backoff import Backoff
from triptych.security import auth
from triptych.transport import shared_memory
from triptych.v1.fleet_service_pb2 import UnregisterWorkerRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych_client.fleet_plan import CONTROLLER, TEXT_ENCODER, FleetPlan
from triptych_client.launcher import Notice, Supervisor
from triptych_client.processes import ProcessSpec

log = logging.getLogger(__name__)

TELL_S = 30.0
"""How long to tell of an end: a controller that was killed beside its worker is back by then; later, silence tells."""
CALL_S = 5.0

EMBEDDED_DRAIN_TIMEOUT_S = 5.0
"""An embedded fleet has nothing left to finish when it stops."""


class Fleet:
    """A plan, running. Use `run_fleet`."""

    def __init__(self, plan: FleetPlan, notice: Notice | None = None) -> None:
        self.plan = plan
        self.supervisor = Supervisor(plan.log_folder, notice=notice, end_told=self._tell_end)
        self.endpoint = ""

    async def start(self) -> None:
        """Start the controller, then all workers, and wait until all serve, as long as the model needs.

        Raises InvalidRequest when a process refuses its configuration, Unavailable when one can't start.
        """
        supervisor = self.supervisor
        timeout_s = self.plan.start_timeout_s
        _sweep_arenas()
        supervisor.start(self.plan.controller())
        async with supervisor.telling("waiting", lambda: [CONTROLLER]):
            self.endpoint = await supervisor.ready(CONTROLLER, timeout_s)
        specs = self.plan.workers(self.endpoint, await self._text_encoder(timeout_s))
        for spec in specs:
            supervisor.start(spec)
        supervisor.notify(f"waiting for {', '.join(spec.name for spec in specs)}, which load {self.plan.model}")
        waits = {spec.name: asyncio.ensure_future(supervisor.ready(spec.name, timeout_s)) for spec in specs}
        try:
            async with supervisor.telling("waiting", lambda: [name for name in waits if not waits[name].done()]):
                await asyncio.gather(*waits.values())  # the first that can't start ends the wait for the others
        finally:
            for wait in waits.values():
                wait.cancel()
            await asyncio.gather(*waits.values(), return_exceptions=True)

    async def _text_encoder(self, timeout_s: float) -> str:
        """Start the text-encoder process, if there is to be one; its address, before encoders ask it what it runs."""
        if not self.plan.text_encoders:
            return ""
        self.supervisor.start(self.plan.text_encoder())
        async with self.supervisor.telling("waiting", lambda: [TEXT_ENCODER]):
            return await self.supervisor.ready(TEXT_ENCODER, timeout_s)

    async def stop(self) -> None:
        """Drain the workers in the order in which a job passes them, then the controller."""
        for names, timeout_s in self.plan.drains():
            await self.supervisor.stop(names, timeout_s)

    async def wait(self) -> None:
        """Wait until a process can't be kept running, and raise why."""
        await self.supervisor.wait()

    def kill_now(self) -> None:
        """End all processes without waiting."""
        self.supervisor.kill_now()

    async def _tell_end(self, spec: ProcessSpec, instance_id: str, how: str) -> None:
        """Tell the controller that a worker's process has ended, by the certificate of its role.

        What the controller refuses, or doesn't hear within `TELL_S`, is logged: silence tells it then.
        """
        verb = "was ended by" if how.startswith("signal") else "ended with"
        request = UnregisterWorkerRequest(instance_id=instance_id, ended=f"{verb} {how}")
        backoff = Backoff()
        try:
            security = auth.open_security(self.plan.tls_folder(spec.name.rpartition("-")[0]), "")
            async with asyncio.timeout(TELL_S), rpc.open_channel(self.endpoint, security) as channel:
                stub = FleetServiceStub(channel)
                while True:
                    try:
                        await rpc.translate(stub.UnregisterWorker(request, timeout=CALL_S))
                        return
                    except (Unavailable, DeadlinePassed, JournalFull):
                        await asyncio.sleep(backoff.next_s())
        except (TriptychError, TimeoutError) as error:
            log.warning("the controller was not told that a worker %s: %s", request.ended, error or "no answer")

    async def kill(self) -> None:
        """End all processes without a drain, and remove what they left in /dev/shm."""
        await self.supervisor.kill()
        _sweep_arenas()


@contextlib.asynccontextmanager
async def run_fleet(plan: FleetPlan, notice: Notice | None = None) -> AsyncIterator[Fleet]:
    """A fleet that serves inside the block; drained when the block ends, killed when it ends by an error."""
    fleet = Fleet(plan, notice)
    try:
        await fleet.start()
        yield fleet
        await fleet.stop()
    finally:
        await fleet.kill()


@contextlib.asynccontextmanager
async def embedded_fleet(model: str, notice: Notice | None = None, **settings: Any) -> AsyncIterator[Fleet]:
    """A controller and one worker of each role for the length of the block, with a state folder that goes with it.

    `settings` are arguments of `FleetPlan`. The folder stays where a process can't run, because the logs say why, and
    where a file can't be written, because it has the result.
    """
    state = Path(tempfile.mkdtemp(prefix="triptych-"))
    keeps = False
    try:
        plan = FleetPlan(model, **{"state": state, "drain_timeout_s": EMBEDDED_DRAIN_TIMEOUT_S, **settings})
        async with run_fleet(plan, notice) as fleet:
            yield fleet
    except (Unavailable, OSError):
        keeps = True
        raise
    finally:
        if not keeps:
            shutil.rmtree(state, ignore_errors=True)


def _sweep_arenas() -> None:
    if find_spec("xxhash") is None:
        raise MissingExtra("xxhash", "serve", "running a fleet on this machine")
    shared_memory.sweep()
