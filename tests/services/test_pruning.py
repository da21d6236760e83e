"""Finished jobs go when they are too old or too many, with all their files; others stay, whatever their age."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.controller import journal_sqlite, pruning
from services.controller.journal import Journal
from services.controller.journal_database import Database
from services.controller.pruning import CLOCK_RATE, SECONDS_A_DAY, Keep, Pruner
from triptych.media import results
from triptych.v1.job_pb2 import (
    JOB_STATE_DENOISING,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    GenerationRequest,
    Job,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry

NOW_S = 1_000_000_000.0


class State:
    """A journal and a folder of results."""

    def __init__(self, journal: Journal, url: str) -> None:
        self.journal = journal
        self.url = url

    async def add(
        self,
        number: int,
        age_days: float,
        state: JobState.ValueType = JOB_STATE_SUCCEEDED,
        client: str = "",
        data: bytes = b"data",
    ) -> None:
        """A job that ended (or hasn't), and its file."""
        job = Job(job_id=f"job-{number}", request_id=str(number), state=state, client=client)
        if state != JOB_STATE_DENOISING:
            job.end_time.FromNanoseconds(int((NOW_S - age_days * SECONDS_A_DAY) * 1e9))
        job.artifacts.append(results.store(self.url, job.job_id, results.new_token(), "0.npy", "", data))
        await self.journal.add(JournalEntry(job=job), GenerationRequest())

    async def prune(self, *, keep_days: float = 0, keep_jobs: int = 0, keep_bytes: int = 0) -> int:
        """One pass."""
        return await Pruner(self.journal, self.url, Keep(keep_days, keep_jobs, keep_bytes)).prune(NOW_S)

    async def left(self) -> list[int]:
        """The jobs in the journal, which must be those with files."""
        found = sorted(int(e.job.request_id) for _, e in (await self.journal.page([], 2**62, 10_000))[0])
        names = os.listdir(self.url.removeprefix("file://"))
        assert sorted(int(name.removeprefix("job-")) for name in names) == found
        return found


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    async with Journal(tmp_path) as journal:
        yield State(journal, results.check_url("result_url", str(tmp_path / "results")))


async def test_old_ones_go(state: State) -> None:
    for number, age_days in enumerate((9, 31, 8, 7.1, 6.9, 1)):
        await state.add(number, age_days)
    assert await state.prune(keep_days=7) == 4
    assert await state.left() == [4, 5]
    assert await state.prune(keep_days=7) == 0


async def test_the_oldest_of_too_many_go(state: State) -> None:
    for number in range(6):
        await state.add(number, 1)
    assert await state.prune(keep_jobs=4) == 2
    assert await state.left() == [2, 3, 4, 5]


async def test_those_that_are_not_over_stay_and_do_not_count(state: State) -> None:
    for number in range(3):
        await state.add(number, 99, JOB_STATE_DENOISING)
    await state.add(3, 99, JOB_STATE_FAILED)
    await state.add(4, 1, JOB_STATE_FAILED)
    assert await state.prune(keep_days=7, keep_jobs=1) == 1
    assert await state.left() == [0, 1, 2, 4]


async def test_what_a_store_does_not_let_go_keeps_nothing_else(state: State) -> None:
    """The oldest job lies in a store that this machine knows nothing of, from another time."""
    for number in range(3):
        await state.add(number, 99 - number)
    found = await state.journal.get("job-0")
    assert found is not None
    found.job.artifacts[0].url = "nonsense://x/job-0/0.npy"
    await state.journal.save(found)
    for _ in range(2):
        with pytest.raises(ValueError, match="nonsense"):
            await state.prune(keep_days=7)
    assert [await state.journal.get(f"job-{n}") is not None for n in range(3)] == [True, False, False]


async def test_no_limit_keeps_everything(state: State) -> None:
    for number in range(3):
        await state.add(number, 9999)
    assert await state.prune() == 0
    assert await state.left() == [0, 1, 2]


async def test_more_than_a_batch(state: State) -> None:
    count = pruning.BATCH_JOBS + 9
    for number in range(count):
        await state.add(number, 1)
    assert await state.prune(keep_jobs=3) == count - 3
    assert await state.left() == [count - 3, count - 2, count - 1]


async def test_a_request_id_is_free_again(state: State) -> None:
    await state.add(1, 99)
    await state.prune(keep_days=7)
    await state.add(1, 0)
    assert await state.left() == [1]


async def test_a_pass_that_was_cut_short_is_finished_by_the_next(state: State) -> None:
    await state.add(1, 99)
    found = await state.journal.get("job-1")
    assert found is not None
    results.remove(state.url, found.job)  # and then the controller was killed
    assert await state.prune(keep_days=7) == 1
    assert await state.left() == []


async def test_one_clients_volume_takes_nothing_of_anothers(state: State) -> None:
    """Ten thousand jobs, made and cancelled, were enough to remove everybody else's."""
    await state.add(0, 20, client="token:bob")
    for number in range(1, 9):
        await state.add(number, 1, JOB_STATE_FAILED, client="token:mallory")
    assert await state.prune(keep_days=30, keep_jobs=4) == 4
    assert await state.left() == [0, 5, 6, 7, 8]


async def test_bytes_are_bounded_for_each_client(state: State) -> None:
    await state.add(0, 9, client="token:bob", data=b"x" * 900)
    for number in range(1, 6):
        await state.add(number, 9 - number, client="token:mallory", data=b"x" * 400)
    assert await state.prune(keep_bytes=1000) == 3
    assert await state.left() == [0, 4, 5]


async def test_the_newest_result_stays_however_large(state: State) -> None:
    await state.add(0, 2, data=b"x" * 10)
    await state.add(1, 1, data=b"x" * 5000)
    assert await state.prune(keep_bytes=1000) == 1
    assert await state.left() == [1]


async def test_age_goes_by_the_end_and_not_by_the_start(state: State) -> None:
    """More young jobs than a batch before an old one: it goes all the same."""
    for number in range(pruning.BATCH_JOBS + 1):
        await state.add(number, 1)
    await state.add(9999, 99)
    assert await state.prune(keep_days=7) == 1


async def test_a_clock_that_jumps_ahead_removes_nothing_at_once(state: State) -> None:
    month_s = 30 * SECONDS_A_DAY
    pruner = Pruner(state.journal, state.url, Keep(days=30))
    start_s = pruner._passed_s
    assert await pruner.clock(NOW_S, start_s) == NOW_S
    assert await pruner.clock(NOW_S + 60, start_s + 60) == NOW_S + 60
    again = Pruner(state.journal, state.url, Keep(days=30))  # the next start, with a clock that is wrong
    start_s = again._passed_s
    assert await again.clock(NOW_S + month_s, start_s) == NOW_S + 60
    assert await again.clock(NOW_S + month_s, start_s + 100) == NOW_S + 60 + 100 * CLOCK_RATE
    assert await again.clock(NOW_S + 500, start_s + 160) == NOW_S + 500, "set right again"
    end_s = start_s + 160 + month_s / CLOCK_RATE
    assert await again.clock(NOW_S + 500 + month_s, end_s) == NOW_S + 500 + month_s, "it was no jump: the time did pass"


async def test_a_journal_without_a_clock_begins_with_what_it_knows(state: State) -> None:
    """Of an earlier version, and the machine's clock is wrong at its first start."""
    await state.add(0, 1)
    pruner = Pruner(state.journal, state.url, Keep(days=30))
    assert await pruner.clock(NOW_S + 99 * SECONDS_A_DAY, pruner._passed_s) == NOW_S - SECONDS_A_DAY


async def test_the_file_shrinks_when_what_is_over_goes(state: State) -> None:
    count = 30
    jobs = []
    for number in range(count):
        jobs.append(Job(job_id=f"job-{number}", request_id=str(number), state=JOB_STATE_DENOISING))
        await state.journal.add(JournalEntry(job=jobs[-1]), GenerationRequest(prompt="p" * 2**20))
    before = await state.journal.run(_pages)
    for job in jobs:
        job.state = JOB_STATE_FAILED
        job.end_time.GetCurrentTime()
        await state.journal.save(JournalEntry(job=job))
    await state.prune()
    after = await state.journal.run(_pages)
    assert before > count * 2**20 // 4096
    assert after < journal_sqlite.VACUUM_PAGES + 1000


def _pages(db: Database) -> int:
    return int(db.execute("PRAGMA page_count").fetchone()[0])
