"""A caller that goes away leaves disk and memory of a job as one.

gRPC cancels a servicer when its client goes away or its deadline passes. Between a commit and what follows from it that
would leave a job accepted, say, and in no queue until the next restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.controller import jobs
from services.controller.journal import Journal
from tests.services.conftest import Bench
from triptych.config import ControllerConfig
from triptych.v1.generation_service_pb2 import CancelJobRequest
from triptych.v1.job_pb2 import JOB_STATE_CANCELLED, GenerationRequest
from triptych.v1.journal_pb2 import JournalEntry

WAIT_S = 10.0


class SlowJournal(Journal):
    """Its answers come late: what was written is on disk before anybody hears of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written, self.go_on = asyncio.Event(), asyncio.Event()
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


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with SlowJournal(tmp_path / "state") as journal:
        yield Bench(tmp_path, journal, ControllerConfig())


def slow(bench: Bench) -> SlowJournal:
    assert isinstance(bench.journal, SlowJournal)
    bench.journal.go_on.clear()
    bench.journal.written.clear()
    return bench.journal


async def test_an_accepted_job_is_queued(bench: Bench) -> None:
    await slow(bench).cut_off(asyncio.create_task(bench.create(request_id="r-1")))
    async with asyncio.timeout(WAIT_S):
        await bench.controller.dispatcher.work.wait()
    (entry,) = bench.controller.ledger.active.values()
    assert entry.job.request_id == "r-1"


async def test_a_change_that_is_on_disk_is_believed(bench: Bench) -> None:
    job_id = (await bench.create()).job_id
    cancel = bench.service.CancelJob(CancelJobRequest(job_id=job_id), None)
    await slow(bench).cut_off(asyncio.ensure_future(cancel))
    async with asyncio.timeout(WAIT_S):
        async for update in bench.controller.ledger.watch(job_id):
            assert update.job.job_id == job_id
    stored = await bench.journal.get(job_id)
    assert stored is not None
    assert stored.job.state == JOB_STATE_CANCELLED
    assert jobs.is_over(stored)
