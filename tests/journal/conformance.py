"""The conformance suite of all databases of the journal. A suite subclasses `JournalConformance` and gives `store`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from services.controller import jobs
from services.controller.journal import Journal
from services.controller.journal_database import PAGE_ENTRIES, Database, Store
from services.controller.pruning import Keep, Pruner
from tests.services.test_pruning import NOW_S, State
from triptych.errors import InvalidRequest, TakenOver
from triptych.media import results
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DENOISING,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    GenerationRequest,
    Job,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription

LAST = 2**62
"""A sequence beyond all."""


def entry(number: int, state: JobState.ValueType = JOB_STATE_QUEUED, client: str = "") -> JournalEntry:
    """A job's."""
    job = Job(job_id=f"job-{number}", request_id=f"request-{number}", state=state, client=client)
    if state in jobs.OVER:
        job.end_time.FromSeconds(1_000 + number)
    return JournalEntry(job=job)


def ids(page: tuple[list[tuple[int, JournalEntry]], bool]) -> list[str]:
    """The jobs of a page."""
    return [found.job.job_id for _, found in page[0]]


class JournalConformance:
    """What every journal does."""

    @pytest.fixture
    def store(self) -> Store:
        """An empty store, which can be opened again and again."""
        raise NotImplementedError

    async def test_what_was_added_is_there_after_reopening(self, store: Store) -> None:
        async with Journal(store) as journal:
            added = [journal.add(entry(n), GenerationRequest(prompt=f"prompt {n}")) for n in range(40)]
            assert await asyncio.gather(*added) == [None] * 40
            await journal.save(entry(3, JOB_STATE_CANCELLED))
            assert await journal.next_epoch() == 1
        async with Journal(store) as journal:
            assert await journal.next_epoch() == 2
            unfinished = await journal.unfinished(sorted(jobs.OVER))
            assert [one.job.job_id for one in unfinished] == [f"job-{n}" for n in range(40) if n != 3]
            request = await journal.get_request("job-17")
            assert request is not None
            assert request.prompt == "prompt 17"
            assert await journal.get_request("job-3") is None, "its job is over"
            assert await journal.counts() == {JOB_STATE_QUEUED: 39, JOB_STATE_CANCELLED: 1}
            assert await journal.counts("somebody") == {}

    async def test_a_request_id_is_taken_once(self, store: Store) -> None:
        async with Journal(store) as journal:
            assert await journal.add(entry(1), GenerationRequest()) is None
            second = entry(1)
            second.job.job_id = "job-other"
            beside = journal.add(entry(2), GenerationRequest())  # it shares the commit, and is not undone
            existing, nothing = await asyncio.gather(journal.add(second, GenerationRequest()), beside)
            assert nothing is None
            assert existing is not None
            assert existing.job.job_id == "job-1"
            assert await journal.get("job-other") is None
            assert await journal.get_request("job-other") is None
            second.job.client = "another client"
            assert await journal.add(second, GenerationRequest()) is None
            found = await journal.find("another client", "request-1")
            assert found is not None
            assert found.job.job_id == "job-other"

    async def test_a_dead_letter_is_tried_again_once(self, store: Store) -> None:
        async with Journal(store) as journal:
            dead = entry(1, JOB_STATE_FAILED)
            dead.job.dead_letter = True
            await journal.add(entry(1), GenerationRequest(prompt="kept"))
            await journal.save(dead)
            kept = await journal.get_request("job-1")
            assert kept is not None
            assert ids(await journal.page([], LAST, 9, dead_only=True)) == ["job-1"]
            for number, is_first in ((2, True), (3, False)):
                again = entry(number)
                again.job.retry_of = "job-1"
                assert (await journal.add(again, kept) is None) is is_first
            found = await journal.retry_of("job-1")
            assert found is not None
            assert found.job.job_id == "job-2"

    async def test_ranks_are_never_given_twice(self, store: Store) -> None:
        async with Journal(store) as journal:
            assert [await journal.rank_of(name) for name in ("a", "b", "a")] == [1, 2, 1]
            await journal.forget_worker(2)
            assert await journal.known_rank("b") == 0
            assert await journal.rank_of("b") == 3
        async with Journal(store) as journal:
            assert [await journal.rank_of(name) for name in ("b", "c")] == [3, 4]
            assert await journal.ranks() == [1, 3, 4]

    async def test_values_and_the_model(self, store: Store) -> None:
        async with Journal(store) as journal:
            assert await journal.get_meta("model") == b""
            model = ModelDescription(model="toy", config_digest="ab" * 32)
            for value in (b"\0\xff any bytes", model.SerializeToString()):
                await journal.set_meta("model", value)
                assert await journal.get_meta("model") == value
            await journal.add(entry(1), GenerationRequest())
            for _ in range(2):
                await journal.name_models()
            found = await journal.get("job-1")
            assert found is not None
            assert found.job.model_digest == model.config_digest

    @pytest.mark.parametrize("read", [Journal.check, Journal.name_models, lambda journal: journal.unfinished([])])
    async def test_who_reads_all_entries_lets_others_in_between(
        self, store: Store, read: Callable[[Journal], Coroutine[Any, Any, object]]
    ) -> None:
        """They share the thread: a lease must be renewed meanwhile."""
        async with Journal(store) as journal:
            count = 3 * PAGE_ENTRIES
            await asyncio.gather(*(journal.add(entry(number), GenerationRequest()) for number in range(count)))
            reading = asyncio.create_task(read(journal))
            await asyncio.sleep(0)  # its first call is on its way
            assert await journal.counts() == {JOB_STATE_QUEUED: count}
            assert not reading.done()
            await reading
            assert len(await journal.unfinished([JOB_STATE_CANCELLED])) == count

    async def test_pages_are_newest_first_and_filtered(self, store: Store) -> None:
        async with Journal(store) as journal:
            for number in range(5):
                state = JOB_STATE_CANCELLED if number % 2 else JOB_STATE_QUEUED
                await journal.add(entry(number, state, client="odd" if number % 2 else ""), GenerationRequest())
            page = await journal.page([], LAST, 3)
            assert ids(page) == ["job-4", "job-3", "job-2"]
            assert page[1]
            rest = await journal.page([], page[0][-1][0], 3)
            assert ids(rest) == ["job-1", "job-0"]
            assert not rest[1]
            assert ids(await journal.page([JOB_STATE_CANCELLED], LAST, 9)) == ["job-3", "job-1"]
            assert ids(await journal.page([], LAST, 9, client="odd")) == ["job-3", "job-1"]
            assert ids(await journal.page([JOB_STATE_CANCELLED], LAST, 9, client="")) == []
            for prefix, count in (("job-", 5), ("job-3", 1), ("JOB", 0), ("job-33", 0), ("job.", 0)):
                found = await journal.page(
                    [JOB_STATE_QUEUED, JOB_STATE_CANCELLED], LAST, 9, job_id_prefix=prefix, client=None
                )
                assert len(found[0]) == count, prefix
            assert ids(await journal.page([], LAST, 9, client="odd", job_id_prefix="job-3")) == ["job-3"]

    async def test_any_text_that_a_client_may_send(self, store: Store) -> None:
        """PostgreSQL's texts hold no zero."""
        texts = ["\0", "a\0b", "\U0010ffff", "ä%s ?", "'; DROP TABLE jobs; --", "%", "é" * 128]
        async with Journal(store) as journal:
            for number, text in enumerate(texts):
                one = entry(number, client=text)
                one.job.request_id = text
                assert await journal.add(one, GenerationRequest()) is None
            for number, text in enumerate(texts):
                found = await journal.find(text, text)
                assert found is not None
                assert (found.job.job_id, found.job.request_id) == (f"job-{number}", text)
                assert await journal.get(text) is None
                assert ids(await journal.page([], LAST, 9, job_id_prefix=text)) == []
                assert ids(await journal.page([], LAST, 9, client=text)) == [f"job-{number}"]

    async def test_what_is_deleted_is_gone_and_its_request_id_free(self, store: Store) -> None:
        async with Journal(store) as journal:
            await journal.delete([])
            for number in range(3):
                await journal.add(entry(number), GenerationRequest())
            await journal.delete(["job-0", "job-2"])
            assert ids(await journal.page([], LAST, 9)) == ["job-1"]
            assert await journal.get_request("job-0") is None
            assert await journal.add(entry(0), GenerationRequest()) is None

    async def test_pruning_by_age_number_and_bytes(self, store: Store, tmp_path: Path) -> None:
        async with Journal(store) as journal:
            state = State(journal, results.check_url("result_url", str(tmp_path / "results")))
            assert await state.prune(keep_days=7, keep_jobs=1, keep_bytes=1) == 0
            pruner = Pruner(journal, state.url, Keep(days=30))
            assert await pruner.clock(NOW_S, pruner._passed_s) == NOW_S
            for number, age_days in enumerate((99, 9, 8, 6, 5, 4)):
                await state.add(number, age_days, data=b"x" * 400)
            await state.add(6, 99, JOB_STATE_DENOISING)
            await state.add(7, 1, client="token:bob", data=b"x" * 900)
            assert await state.prune(keep_days=30) == 1
            assert await state.prune(keep_jobs=4) == 1
            assert await state.left() == [2, 3, 4, 5, 6, 7]
            assert await state.prune(keep_bytes=1000) == 2
            assert await state.left() == [4, 5, 6, 7]
            assert await state.prune() == 0

    async def test_a_call_that_fails_alone_undoes_nobody_elses(self, store: Store) -> None:
        """They share a transaction; the database ends it."""

        def break_off(db: Database) -> None:
            db.execute("INSERT INTO jobs (job_id) VALUES ('half')")

        async with Journal(store) as journal:
            calls = [journal.add(entry(0), GenerationRequest()), journal.run(break_off), journal.set_meta("k", b"v")]
            first, failure, third = await asyncio.gather(*calls, return_exceptions=True)
            assert (first, third) == (None, None)
            assert isinstance(failure, Exception)
            assert ids(await journal.page([], LAST, 9)) == ["job-0"]
            assert await journal.get_meta("k") == b"v"

    async def test_a_second_controller_is_refused(self, store: Store) -> None:
        async with Journal(store):
            with pytest.raises(InvalidRequest, match="no other controller"):
                await Journal(store).__aenter__()
        async with Journal(store):
            pass

    async def test_a_job_that_cannot_be_read_is_refused(self, store: Store) -> None:
        async with Journal(store) as journal:
            await journal.add(entry(1), GenerationRequest())
            await journal.run(lambda db: db.execute("UPDATE jobs SET entry = ?", (b"\xff\xff\xff",)) and None)
        with pytest.raises(InvalidRequest, match=r"put a backup in its place \(job 'job-1' can't be read"):
            await Journal(store).__aenter__()

    async def test_another_format_is_refused(self, store: Store) -> None:
        async with Journal(store) as journal:
            await journal.set_meta("format", b"99")
        with pytest.raises(InvalidRequest, match=r"a journal of format .*; this has .*99"):
            await Journal(store).__aenter__()

    async def test_what_a_newer_version_wrote_into_an_entry_survives(self, store: Store) -> None:
        """Unknown fields of the same format: read, changed and written back with the rest."""
        unknown = b"\xfa\x7f\x03new"  # field 2047, of which this version knows nothing
        newer = JournalEntry.FromString(entry(1).SerializeToString() + unknown)
        async with Journal(store) as journal:
            await journal.add(newer, GenerationRequest())
            found = await journal.get("job-1")
            assert found is not None
            found.job.state = JOB_STATE_CANCELLED
            await journal.save(found)
        async with Journal(store) as journal:
            found = await journal.get("job-1")
        assert found is not None
        assert found.SerializeToString().endswith(unknown)

    async def test_who_is_of_an_older_epoch_writes_and_reads_nothing(self, store: Store) -> None:
        """As if another controller had counted the epoch up."""
        async with Journal(store) as journal:
            await journal.next_epoch()
            await journal.set_meta("epoch", b"7")
            calls = [journal.add(entry(1), GenerationRequest()), journal.counts(), journal.next_epoch()]
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, TakenOver)
            assert journal.ended.done()
        async with Journal(store) as journal:
            assert ids(await journal.page([], LAST, 9)) == []
            assert await journal.next_epoch() == 8
