"""A seeded world in which the real controller and real workers meet over a network that loses and delays.

Real: journal (SQLite, in memory), `Controller`, both servicers, rings, `Link`, `RpcRing`,
`Worker`, `EncoderServicer`, and `Phases` but for what touches tensors. One random number generator decides everything
that happens, so a seed is a schedule: `python -m tests.tie.world SEED`.

What must hold, whatever is lost or late until `FAULTS_S`: every job ends soon after; none is begun twice under one
lease; each cancelled job's worker stops, each room that nobody needs is released; the controller never has to ask a
worker that idles beside its ring; and where nobody was killed or silent for too long, no attempt was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.controller import journal_file
from services.controller.controller import Controller
from services.controller.core import Core
from services.controller.fleet import Fleet
from services.controller.fleet_service import FleetServicer
from services.controller.holdings import Holdings
from services.controller.journal import Journal
from services.controller.journal_database import Database
from services.controller.journal_sqlite import SqliteDatabase
from services.controller.media_checks import MediaChecks
from services.controller.ring_service import RingServicer
from services.controller.rings import Rings
from services.controller.served_model import stored_model
from services.worker.equipment import Equipment
from services.worker.link import Link
from services.worker.loop import Worker
from services.worker.membership import FleetMember
from services.worker.phase import Phases
from services.worker.report import PhaseReporter
from services.worker.running import Running
from services.worker.servicers import EncoderServicer
from tests.tie.network import FaultMix, Network, Server, SimContext, SimLoop, Wire
from triptych import telemetry
from triptych.config import ControllerConfig, WorkerConfig
from triptych.errors import JobCancelled, TriptychError
from triptych.rings.access import RingAccess
from triptych.rings.layout import ATTEMPT_MAX, Geometry
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Removed
from triptych.roles import NEXT, RING_OF
from triptych.security.identity import ANYONE, set_caller
from triptych.stages.fake import FAKE_MODEL, FakeStage
from triptych.v1 import encoder_service_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Role
from triptych.v1.job_pb2 import (
    JOB_STATE_FAILED,
    Artifact,
    GenerationRequest,
)
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_pb2 import DriverChoice

FAULTS_S = 12.0
"""Until when messages are lost and processes die."""
END_S = 150.0
"""By when everything must be over: a lost call is noticed within 30 s, a claim within 40."""
CONFIG = replace(ControllerConfig(), worker_timeout_s=5.0, attempts_max=50)
CLAIM_S = 42.0
"""A claim that was lost is asked for again within this time; until then its worker is rightly idle."""
ADDRESS = "127.0.0.1:1"
SETTLE_S = 45.0
"""After the last job: for the orders that are still under way, and calls that nobody answers."""


class Violation(AssertionError):
    """A schedule broke what must hold."""


@dataclass(frozen=True)
class Parts:
    """What a planted bug replaces."""

    link: type[Link] = Link
    holdings: type[Holdings] = Holdings
    fleet: type[Fleet] = Fleet
    mix: FaultMix | None = None
    """The faults of every schedule, so that a bug which takes certain ones shows soon."""


class SimArena:
    """Names of rooms."""

    host_id, size_bytes, used_bytes, largest_gap_bytes = "host", 1 << 20, 0, 1 << 20

    def __init__(self) -> None:
        self._rooms: set[int] = set()

    def rooms(self) -> list[int]:
        return sorted(self._rooms)

    def put(self, room_id: int) -> None:
        self._rooms.add(room_id)

    def release(self, room_id: int) -> bool:
        known = room_id in self._rooms
        self._rooms.discard(room_id)
        return known


class SimPhases(Phases):
    """The real way of a job, with a wait where the stage and the tensors would be."""

    world: World

    async def _work(self, running: Running, request: GenerationRequest, reporter: PhaseReporter) -> None:
        world, role, dispatch = self.world, self._stage.role, running.dispatch
        world.begins(role, running)
        for _ in range(world.random.randrange(1, 12)):
            await asyncio.sleep(0.2)
            if running.should_stop():
                raise JobCancelled("stopped")
        while dispatch.job_id in world.endless and role == ROLE_TRANSFORMER:
            await asyncio.sleep(0.5)
            if running.should_stop():
                raise JobCancelled("stopped")
        if role == ROLE_DECODER:
            artifact = Artifact(name="0.png", media_type="image/png", size_bytes=1, sha256=bytes(32))
            artifact.url = f"{dispatch.job_id}/{'0' * 32}/0.png"
            await reporter.complete(artifacts=[artifact], result_url=self._link.result_url)
            return
        rank = self._link.membership.rank
        room_id = running.room_id = self.rooms.new_id()
        self._equipment.arena.put(room_id)  # type: ignore[call-arg]
        room = RoomRef(room_id=room_id, size_bytes=4096, xxh3_128=bytes(16), owner_rank=rank)
        room.owner_address = ADDRESS
        after = Dispatch(job_id=dispatch.job_id, generation=dispatch.generation, role=NEXT[role], room=room)
        after.sender_rank = rank
        try:
            await reporter.complete(after)
        except TriptychError:
            if not (running.lost and room_id in running.declared_room_ids):
                self._equipment.arena.release(room_id)
            raise
        await self._handover.publish(running, after)


class SimJournal(Journal):
    """The journal's own statements on a database in memory. What a dead controller had under way is never answered."""

    def __init__(self, db: sqlite3.Connection, network: Network) -> None:
        super().__init__(Path("nowhere"))
        self._database, self._network = SqliteDatabase(db, Path("nowhere")), network
        self.server: Server | None = None

    async def run(self, work: Callable[[Database], Any]) -> Any:
        await asyncio.sleep(self._network.random.uniform(0.0, 0.01))
        await self._live()
        result = work(self._database)
        await asyncio.sleep(self._network.random.uniform(0.0, 0.01))
        await self._live()
        return result

    async def _live(self) -> None:
        if self.server is not None and self.server.dead.done():
            await asyncio.get_running_loop().create_future()


class Noticed(telemetry.ControllerMetrics):
    """What the controller found to repair."""

    def __init__(self) -> None:
        super().__init__()
        self.reconciliations: Counter[str] = Counter()

    def reconciled(self, what: str) -> None:
        late = asyncio.get_running_loop().time() > FAULTS_S + CLAIM_S
        self.reconciliations[f"{what}, late" if late else what] += 1


class SimWorker:
    """A worker's process."""

    def __init__(self, world: World, role: Role.ValueType, number: int) -> None:
        self.role, self.arena = role, SimArena()
        nothing: Any = None
        config, instance_id = WorkerConfig(), f"worker-{number}"  # so that a seed is a schedule
        stage = FakeStage(role, 0.0)
        self.equipment = Equipment(
            config,
            stage,
            FAKE_MODEL,
            self.arena,
            nothing,
            "",
            DriverChoice(),
            ADDRESS,
            telemetry.WorkerMetrics(role),
            nothing,
            instance_id,
        )  # type: ignore[arg-type]
        channel: Any = Wire(world.network)
        self.link = world.parts.link(channel)
        access = RingAccess(channel, [role, NEXT[role]] if role in NEXT else [role], self.link, card=None)
        phases = SimPhases(self.equipment, self.link, access)
        phases.world = world
        self.worker = Worker(self.equipment, self.link, access, phases, asyncio.Event())
        loaded: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        loaded.set_result(self.worker)
        self.direct = EncoderServicer("controller", loaded)
        self.tasks = [asyncio.create_task(self.link.run(FleetMember(self.worker))), asyncio.create_task(self._work())]

    async def _work(self) -> None:
        await self.link.registered.wait()
        await self.worker.run()

    def kill(self) -> None:
        for task in self.tasks:
            task.cancel()

    @property
    def is_idle(self) -> bool:
        return self.worker.running is None


class World:
    """Runs one schedule."""

    def __init__(self, seed: int, parts: Parts = Parts()) -> None:
        self.seed, self.parts = seed, parts
        self.random = random.Random(seed)
        network_seed = self.random.getrandbits(32)
        share = self.random.choice((0.0, 0.1, 0.25, 0.4))
        self.network = Network(network_seed, parts.mix or FaultMix.even(share), FAULTS_S)
        self.metrics = Noticed()
        self.endless: set[str] = set()
        self.begun: Counter[tuple[object, ...]] = Counter()
        self.accepted: set[str] = set()
        self.kills = self.restarts = 0
        self.workers: list[SimWorker] = []
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        _template().backup(self._db)
        self.controller: Controller
        self.epoch = 0

    def run(self) -> World:
        """Run it. Raises Violation."""
        random.seed(self.seed)
        loop = SimLoop()
        try:
            loop.run_until_complete(self._run())
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            self._db.close()
        return self

    def begins(self, role: Role.ValueType, running: Running) -> None:
        """A stage begins: never twice under one lease."""
        lease, d = running.claimed.lease, running.dispatch
        key = (d.job_id, d.generation, role, self.network.server, lease.ring, lease.slot, lease.ticket, lease.attempt)
        self.begun[key] += 1
        self._demand(self.begun[key] == 1, f"{d.job_id} is begun twice under one lease")

    def _demand(self, is_so: bool, message: str) -> None:
        if not is_so:
            raise Violation(f"seed {self.seed}: {message}")

    async def _run(self) -> None:
        set_caller(ANYONE)
        await self._start_controller()
        roles = [ROLE_ENCODER, ROLE_TRANSFORMER, ROLE_DECODER]
        roles += self.random.sample(roles, self.random.randrange(3))
        self.workers = [SimWorker(self, role, number) for number, role in enumerate(roles)]
        scripts = [asyncio.create_task(self._client(number)) for number in range(self.random.randrange(2, 8))]
        scripts += [asyncio.create_task(self._fate())]
        await asyncio.gather(*scripts)
        await self._until_over()
        self.network.server.kill()  # type: ignore[union-attr]
        for worker in self.workers:
            worker.kill()

    async def _start_controller(self) -> None:
        self.epoch += 1
        journal = SimJournal(self._db, self.network)
        removed: list[Removed] = []
        by_role = {
            role: MemoryRing(
                name,
                self.epoch,
                attempts_max=ATTEMPT_MAX,
                on_dead_letter=removed.append,
                geometry=Geometry(slot_count=16),
                seed=self.seed,
            )
            for role, name in RING_OF.items()
        }
        core = Core(
            CONFIG,
            journal,
            self.parts.fleet(),
            Rings(by_role, None, "", removed),
            await stored_model(journal),
            epoch=self.epoch,
            result_url="memory://results",
            metrics=self.metrics,
        )
        media = MediaChecks()
        media.close()
        controller = Controller(core, media, holdings_type=self.parts.holdings)
        await controller.holdings.recover()
        server = Server(
            [
                FleetServicer(controller, ""),
                RingServicer(core.rings.values(), core.fleet.check, None, "", core.fleet.target_of),
            ]
        )
        journal.server = server
        server.spawn(controller.upkeep.run())
        self.controller, self.network.server = controller, server

    async def _client(self, number: int) -> None:
        await asyncio.sleep(self.random.uniform(0.0, FAULTS_S - 1))
        request = GenerationRequest(prompt="a circle", seed=number)
        request_id = f"request-{number}"
        is_direct, is_endless = self.random.random() < 0.4, self.random.random() < 0.3
        job_id = ""
        while not job_id:
            try:
                async with asyncio.timeout(60):
                    if is_direct:
                        is_direct = self.random.random() < 0.8
                        encoder = next(worker for worker in self.workers if worker.role == ROLE_ENCODER)
                        direct = encoder_service_pb2.GenerateRequest(request_id=request_id, request=request)
                        context: Any = SimContext()
                        job_id = (await encoder.direct.Generate(direct, context)).job.job_id
                    elif self.network.server is not None:
                        created = self.network.server.spawn(
                            self.controller.lifecycle.create(request_id, request, ANYONE)
                        )
                        await asyncio.wait([created, self.network.server.dead], return_when=asyncio.FIRST_COMPLETED)
                        job_id = created.result().job_id if created.done() and not created.cancelled() else ""
            except (TriptychError, TimeoutError):
                pass
            await asyncio.sleep(0.3)
        self.accepted.add(job_id)
        if is_endless:
            self.endless.add(job_id)
            await asyncio.sleep(self.random.uniform(0.0, FAULTS_S))
            await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        while True:
            server = self.network.server
            if server is not None:
                done = server.spawn(self.controller.lifecycle.cancel(job_id))
                await asyncio.wait([done, server.dead], return_when=asyncio.FIRST_COMPLETED)
                if done.done() and not done.cancelled():
                    return
            await asyncio.sleep(0.3)

    async def _fate(self) -> None:
        """Restarts of the controller, and deaths of workers."""
        moments = sorted(self.random.uniform(1.0, FAULTS_S) for _ in range(self.random.randrange(4)))
        for moment_s in moments:
            await asyncio.sleep(max(0.0, moment_s - asyncio.get_running_loop().time()))
            if self.random.random() < 0.6:
                assert self.network.server is not None
                self.network.server.kill()
                self.network.server = None
                self.restarts += 1
                await asyncio.sleep(self.random.uniform(0.05, 2.0))
                await self._start_controller()
            else:
                self.kills += 1
                index = self.random.randrange(len(self.workers))
                self.workers[index].kill()
                await asyncio.sleep(self.random.uniform(0.05, 1.0))
                self.workers[index] = SimWorker(self, self.workers[index].role, 100 * self.kills + index)

    async def _until_over(self) -> None:
        loop = asyncio.get_running_loop()
        while self.controller.core.ledger.active:
            states = {job_id: entry.job.state for job_id, entry in self.controller.core.ledger.active.items()}
            self._demand(loop.time() < END_S, f"stuck: {states}")
            await asyncio.sleep(0.5)
        late_s = loop.time() + SETTLE_S
        while True:  # the last answers that were lost are asked for again, and orders have their effect
            held = sum(len(worker.arena.rooms()) for worker in self.workers)
            if all(worker.is_idle for worker in self.workers) and not held:
                break
            busy = [worker.role for worker in self.workers if not worker.is_idle]
            self._demand(loop.time() < late_s, f"an order had no effect: {held} rooms held, {busy} busy")
            await asyncio.sleep(0.5)
        await self._check_jobs()

    async def _check_jobs(self) -> None:
        self._demand(not self.metrics.reconciliations["worker, late"], "a worker was idle beside work")
        repaired = self.metrics.reconciliations["lease"]  # of jobs that nobody ran: a late call had started them
        for job_id in self.accepted:
            job = await self.controller.core.ledger.get(job_id)
            self._demand(job.state != JOB_STATE_FAILED, f"{job_id} is lost: {job.error}")
            if not self.kills:
                thrown = [a.reason for a in job.attempts if "came back without the job" in a.reason]
                self._demand(len(thrown) <= repaired, f"{job_id} was thrown away: {thrown}")


def _template() -> sqlite3.Connection:
    """An empty journal."""
    if not _templates:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(journal_file.open_file(Path(folder))) as on_disk,
        ):
            db = sqlite3.connect(":memory:", isolation_level=None)
            on_disk.backup(db)
            _templates.append(db)
    return _templates[0]


_templates: list[sqlite3.Connection] = []


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    World(int(sys.argv[1])).run()
