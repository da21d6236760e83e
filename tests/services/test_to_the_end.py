"""A caller that goes away leaves disk and memory of a job as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.controller import jobs
from services.controller.controller import Controller
from services.controller.journal import Journal
from tests.services.tools import CLIENT, make_controller
from triptych.v1.job_pb2 import JOB_STATE_CANCELLED, GenerationRequest
from triptych.v1.journal_pb2 import JournalEntry

REQUEST = GenerationRequest(prompt="a cat")
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
async def journal(tmp_path: Path) -> AsyncIterator[SlowJournal]:
    async with SlowJournal(tmp_path) as journal:
        yield journal


@pytest.fixture
def controller(journal: SlowJournal) -> Controller:
    return make_controller(journal)


async def test_an_accepted_job_is_queued(journal: SlowJournal, controller: Controller) -> None:
    journal.go_on.clear()
    await journal.cut_off(asyncio.create_task(controller.create("r-1", REQUEST, CLIENT)))
    async with asyncio.timeout(WAIT_S):
        await controller.dispatcher.work.wait()
    (entry,) = controller.ledger.active.values()
    assert entry.job.request_id == "r-1"


async def test_a_change_that_is_on_disk_is_believed(journal: SlowJournal, controller: Controller) -> None:
    job_id = (await controller.create("r-1", REQUEST, CLIENT)).job_id
    journal.go_on.clear()
    journal.written.clear()
    await journal.cut_off(asyncio.create_task(controller.cancel(job_id)))
    async with asyncio.timeout(WAIT_S):
        async for update in controller.ledger.watch(job_id):
            assert update.job.job_id == job_id
    stored = await journal.get(job_id)
    assert stored is not None
    assert stored.job.state == JOB_STATE_CANCELLED
    assert jobs.is_over(stored)
