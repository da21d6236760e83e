"""A controller without processes around it: journal on disk, rings in memory, the servicer as gRPC would call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.controller.controller import Controller
from services.controller.core import Core
from services.controller.file_service import FileServicer
from services.controller.fleet import Fleet
from services.controller.generation_service import GenerationServicer
from services.controller.journal import Journal
from services.controller.media_checks import MediaChecks
from services.controller.rings import Rings
from services.controller.stored_files import StoredFiles
from tests.messages import registration, token_for
from triptych import telemetry
from triptych.config import ControllerConfig
from triptych.errors import LeaseLost
from triptych.media import results
from triptych.rings.layout import ATTEMPT_MAX
from triptych.rings.memory import MemoryRing
from triptych.roles import RING_OF
from triptych.security.identity import ANYONE, Identity, set_caller
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import INPUT_KIND_INTEGER, INPUT_KIND_TEXT, ModelDescription


class Bench:
    """Everything of a controller but its ports. Calls are made as a client of a given identity."""

    def __init__(self, folder: Path, journal: Journal, config: ControllerConfig) -> None:
        model = ModelDescription(model="toy", config_digest="70f1" * 16)
        model.inputs.add(name="prompt", kind=INPUT_KIND_TEXT, required=True)
        model.inputs.add(name="num_inference_steps", kind=INPUT_KIND_INTEGER, default_json="4")
        model.inputs.add(name="num_frames", kind=INPUT_KIND_INTEGER, default_json="1")
        rings = {role: MemoryRing(name, 1, attempts_max=ATTEMPT_MAX) for role, name in RING_OF.items()}
        self.config = config
        self.rings = rings
        self.journal = journal
        self.model = model
        url = results.check_url("result_url", str(folder / "results"))
        self.core = Core(
            config,
            journal,
            Fleet(),
            Rings(rings, None, "", []),
            model,
            epoch=1,
            result_url=url,
            metrics=telemetry.ControllerMetrics(),
        )
        self.media = MediaChecks()
        self.controller = Controller(self.core, self.media)
        stored = StoredFiles(self.core)
        self.service = GenerationServicer(self.core, self.controller.lifecycle, stored)
        self.files = FileServicer(stored, self.core.uploads)

    async def create(self, client: Identity = ANYONE, request_id: str = "", **fields: Any) -> Job:
        """CreateJob."""
        set_caller(client)
        request = GenerationRequest(**{"prompt": "a circle", **fields})
        return (await self.service.CreateJob(pb.CreateJobRequest(request_id=request_id, request=request), None)).job

    async def list(self, client: Identity = ANYONE, **fields: Any) -> list[str]:
        """ListJobs, as ids."""
        set_caller(client)
        return [job.job_id for job in (await self.service.ListJobs(pb.ListJobsRequest(**fields), None)).jobs]

    async def encoder(self, name: str = "encoder") -> int:
        """Register an encoder; its rank."""
        request = registration(name, ROLE_ENCODER, model=self.model)
        set_caller(ANYONE)
        return (await self.controller.membership.register(request)).rank

    async def claimed(self, rank: int) -> list[str]:
        """The jobs that an encoder gets, in order, until there are no more; each is dropped."""
        found = []
        while True:
            await self.core.dispatcher.publish_waiting()
            claimed = await self.rings[ROLE_ENCODER].claim(rank)
            if claimed is None:
                return found
            found.append(claimed.dispatch.job_id)
            await self.rings[ROLE_ENCODER].ack(claimed.lease)

    async def fail(self, job: Job, rank: int, reason: str = "it broke") -> Job:
        """An encoder takes the job, which must be the next, and fails; the job as it then is."""
        set_caller(ANYONE)
        await self.core.dispatcher.publish_waiting()
        claimed = await self.rings[ROLE_ENCODER].claim(rank)
        assert claimed is not None
        assert claimed.dispatch.job_id == job.job_id
        token = token_for(claimed, ROLE_ENCODER)
        await self.controller.phases.start(fleet_pb.StartPhaseRequest(token=token))
        await self.controller.phases.fail(
            fleet_pb.FailPhaseRequest(token=token, reason=fleet_pb.FAILURE_REASON_STAGE_ERROR, message=reason)
        )
        try:
            await self.rings[ROLE_ENCODER].ack(claimed.lease)
        except LeaseLost as error:
            raise AssertionError("a failure ends with an ack") from error
        return await self.core.ledger.get(job.job_id)


WAIT_S = 60.0


class SlowJournal(Journal):
    """Its answers come late: what was written is on disk before anybody hears of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def add(self, entry: JournalEntry, request: GenerationRequest) -> JournalEntry | None:
        existing = await super().add(entry, request)
        await self._late()
        return existing

    async def save(self, entry: JournalEntry) -> None:
        await super().save(entry)
        await self._late()

    async def _late(self) -> None:
        self.written.set()
        await self.go_on.wait()

    async def cut_off(self, call: asyncio.Task[object]) -> None:
        """Cancel a call between its commit and what follows, as gRPC does when a client goes away."""
        await asyncio.wait_for(self.written.wait(), WAIT_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        self.go_on.set()


def slow_down(bench: Bench) -> SlowJournal:
    """From now on what is written is answered late."""
    assert isinstance(bench.journal, SlowJournal)
    bench.journal.go_on.clear()
    bench.journal.written.clear()
    return bench.journal


OpenBench = Callable[..., Any]


@pytest.fixture
def open_bench(tmp_path: Path) -> OpenBench:
    """`async with open_bench(setting=value)`: a controller on the test's folder, again and again if need be."""

    @asynccontextmanager
    async def opened(**settings: Any) -> Any:
        async with Journal(tmp_path / "state") as journal:
            bench = Bench(tmp_path, journal, replace(ControllerConfig(), **settings))
            yield bench
            bench.media.close()

    return opened


@pytest.fixture
async def slow_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A controller whose journal may be slowed down."""
    async with SlowJournal(tmp_path / "state") as journal:
        bench = Bench(tmp_path, journal, ControllerConfig())
        yield bench
        bench.media.close()
