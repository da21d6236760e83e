"""The journal's file: private, and honest about what it can't read. What all journals do is in `tests/journal`."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

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
