"""The journal on a real disk: durable, exclusive, honest about what it can't read."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.controller import jobs
from services.controller.journal import Journal
from triptych.errors import InvalidRequest, JournalFull
from triptych.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_QUEUED, GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry


def entry(number: int, state: int = JOB_STATE_QUEUED) -> JournalEntry:
    return JournalEntry(job=Job(job_id=f"job-{number}", request_id=f"request-{number}", state=state))


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """It holds prompts."""
    folder = tmp_path / "state"
    async with Journal(folder) as journal:
        await journal.next_epoch()
        modes = {path.name: path.stat().st_mode & 0o077 for path in [folder, *folder.glob("journal.db*")]}
    assert len(modes) >= 3, "the write-ahead log is there, too"
    assert not any(modes.values()), modes


async def test_nor_one_that_was_copied_into_a_folder_that_others_may_read(tmp_path: Path) -> None:
    """As `cp -r` of a backup leaves it."""
    folder = tmp_path / "copy"
    folder.mkdir(mode=0o755)
    async with Journal(tmp_path / "state") as journal:
        await journal.next_epoch()
        for path in (tmp_path / "state").glob("journal.db*"):
            (folder / path.name).write_bytes(path.read_bytes())
            (folder / path.name).chmod(0o644)
    async with Journal(folder) as journal:
        assert await journal.next_epoch() == 2
        assert not [path for path in folder.glob("journal.db*") if path.stat().st_mode & 0o077]


async def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        added = [journal.add(entry(n), GenerationRequest(prompt=f"prompt {n}")) for n in range(40)]
        assert await asyncio.gather(*added) == [None] * 40
        await journal.save(entry(3, JOB_STATE_CANCELLED))
        assert await journal.next_epoch() == 1
    async with Journal(tmp_path) as journal:
        assert await journal.next_epoch() == 2
        unfinished = await journal.unfinished(sorted(jobs.OVER))
        assert len(unfinished) == 39
        request = await journal.get_request("job-17")
        assert request is not None
        assert request.prompt == "prompt 17"
        assert await journal.counts() == {JOB_STATE_QUEUED: 39, JOB_STATE_CANCELLED: 1}


async def test_a_request_id_is_taken_once(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        assert await journal.add(entry(1), GenerationRequest()) is None
        second = entry(1)
        second.job.job_id = "job-other"
        existing = await journal.add(second, GenerationRequest())
        assert existing is not None
        assert existing.job.job_id == "job-1"


async def test_ranks_are_never_given_twice(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        assert [await journal.rank_of(name) for name in ("a", "b", "a")] == [1, 2, 1]
        await journal.forget_worker(2)
        assert await journal.rank_of("b") == 3
    async with Journal(tmp_path) as journal:
        assert [await journal.rank_of(name) for name in ("b", "c")] == [3, 4]


async def test_pages_are_newest_first_and_filtered(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        for number in range(5):
            await journal.add(
                entry(number, JOB_STATE_CANCELLED if number % 2 else JOB_STATE_QUEUED), GenerationRequest()
            )
        page, _more = await journal.page([], 2**62, 3)
        assert [e.job.job_id for _, e in page] == ["job-4", "job-3", "job-2"]
        rest, _more = await journal.page([], page[-1][0], 3)
        assert [e.job.job_id for _, e in rest] == ["job-1", "job-0"]
        only, _more = await journal.page([JOB_STATE_CANCELLED], 2**62, 9)
        assert [e.job.job_id for _, e in only] == ["job-3", "job-1"]


async def test_a_second_controller_on_one_folder_is_refused(tmp_path: Path) -> None:
    async with Journal(tmp_path):
        with pytest.raises(InvalidRequest, match="no other controller"):
            await Journal(tmp_path).__aenter__()


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    async with Journal(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'format'")
    with pytest.raises(InvalidRequest, match="format 2 or 3; this has 99"):
        await Journal(tmp_path).__aenter__()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not SQLite at all, but long enough to be read as a header" * 40)
    with pytest.raises(InvalidRequest, match="SQLite"):
        await Journal(tmp_path).__aenter__()


async def test_a_newer_format_is_left_as_it_is(tmp_path: Path) -> None:
    """A later version may have tables of other shapes under the same names."""
    file = tmp_path / "journal.db"
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        db.execute("INSERT INTO meta VALUES ('format', 4)")
    before = file.read_bytes()
    with pytest.raises(InvalidRequest, match="format 2 or 3; this has 4"):
        await Journal(tmp_path).__aenter__()
    assert file.read_bytes() == before


async def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(InvalidRequest, match=r"journal\.db was made by a controller"):
        await Journal(tmp_path).__aenter__()


async def test_a_job_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.add(entry(1), GenerationRequest())
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.execute("UPDATE jobs SET entry = ?", (b"\xff\xff\xff",))
    with pytest.raises(InvalidRequest, match=r"put a backup in its place \(job 'job-1' can't be read"):
        await Journal(tmp_path).__aenter__()


async def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    """Each page overwritten in turn: the journal doesn't open, or it opens and gives every job."""
    async with Journal(tmp_path) as journal:
        added = [journal.add(entry(n), GenerationRequest(prompt="p" * 500)) for n in range(60)]
        await asyncio.gather(*added)
    file = tmp_path / "journal.db"
    whole = file.read_bytes()
    with closing(sqlite3.connect(file)) as db:
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    refused = 0
    for start in range(0, len(whole), page_bytes):
        file.write_bytes(whole[:start] + b"\xa5" * page_bytes + whole[start + page_bytes :])
        try:
            async with Journal(tmp_path) as journal:
                assert len(await journal.unfinished([])) == 60
        except InvalidRequest as error:
            assert "state is" in str(error)  # noqa: PT017  (either outcome is right)
            refused += 1
    assert refused >= len(whole) // page_bytes // 2


async def test_what_a_newer_version_wrote_into_an_entry_survives(tmp_path: Path) -> None:
    """Unknown fields of the same format: read, changed and written back with the rest."""
    unknown = b"\xfa\x7f\x03new"  # field 2047, of which this version knows nothing
    newer = JournalEntry.FromString(entry(1).SerializeToString() + unknown)
    async with Journal(tmp_path) as journal:
        await journal.add(newer, GenerationRequest())
        found = await journal.get("job-1")
        assert found is not None
        found.job.state = JOB_STATE_CANCELLED
        await journal.save(found)
    async with Journal(tmp_path) as journal:
        found = await journal.get("job-1")
    assert found is not None
    assert found.SerializeToString().endswith(unknown)


async def test_what_does_not_fit_is_refused_alone_and_what_shares_its_commit_is_kept(tmp_path: Path) -> None:
    """SQLite's own bound on pages stands for the disk: one statement of a batch fails, and ends the transaction."""
    async with Journal(tmp_path) as journal:
        await journal.run(lambda db: db.execute("PRAGMA max_page_count = 40").fetchone())
        prompts = ["small", "x" * 400_000, "small"]
        added = [journal.add(entry(n), GenerationRequest(prompt=prompt)) for n, prompt in enumerate(prompts)]
        results = await asyncio.gather(*added, journal.counts(), return_exceptions=True)
        assert [results[0], results[2]] == [None, None]
        assert isinstance(results[1], JournalFull)
        assert isinstance(results[3], dict)
        await journal.save(entry(0, JOB_STATE_CANCELLED))
    async with Journal(tmp_path) as journal:
        assert [e.job.job_id for e in await journal.unfinished([])] == ["job-0", "job-2"]
        assert await journal.counts() == {JOB_STATE_QUEUED: 1, JOB_STATE_CANCELLED: 1}
