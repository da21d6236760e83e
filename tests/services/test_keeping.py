"""What the journal keeps of a job that is over, what a client may keep in it, and what a broken disk does to it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.controller import jobs, journal_file
from services.controller.journal import Journal
from tests.services.conftest import OpenBench
from triptych.errors import AlreadyExists, InvalidRequest, JournalDamaged, QuotaFull
from triptych.security.identity import SCOPE_READ, SCOPE_SUBMIT, Identity
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED, GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry

ALICE, BOB = (Identity(f"token:{name}", frozenset({SCOPE_SUBMIT, SCOPE_READ})) for name in ("alice", "bob"))
LONG = "p" * 60_000
FORMAT_2 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL UNIQUE, client TEXT NOT NULL,
    request_id TEXT NOT NULL, retry_of TEXT UNIQUE, state INTEGER NOT NULL, dead INTEGER NOT NULL,
    entry BLOB NOT NULL, request BLOB NOT NULL, UNIQUE (client, request_id)
);
CREATE INDEX jobs_by_state ON jobs (state, sequence);
CREATE INDEX jobs_by_client ON jobs (client, sequence);
CREATE INDEX dead_letters ON jobs (sequence) WHERE dead;
CREATE TABLE workers (instance_id TEXT PRIMARY KEY, rank INTEGER NOT NULL UNIQUE);
INSERT INTO meta VALUES ('format', 2);
INSERT INTO meta VALUES ('rank', 7);
"""


async def size_of_requests(journal: Journal) -> int:
    sql = "SELECT TOTAL(LENGTH(request)) FROM requests"
    return int((await journal.run(lambda db: db.execute(sql).fetchone()))[0])


async def test_the_request_of_a_job_goes_with_its_end(open_bench: OpenBench) -> None:
    """Fifteen cancelled jobs with pictures left a journal of a gigabyte."""
    async with open_bench() as bench:
        await bench.encoder()
        job = await bench.create(prompt=LONG)
        assert await size_of_requests(bench.journal) > len(LONG)
        await bench.controller.lifecycle.cancel(job.job_id)
        assert await size_of_requests(bench.journal) == 0
        assert bench.core.ledger.request_bytes[""] == 0


async def test_a_request_id_is_still_one_request_when_its_job_is_over(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.encoder()
        job = await bench.create(request_id="one")
        await bench.controller.lifecycle.cancel(job.job_id)
        assert (await bench.create(request_id="one")).job_id == job.job_id
        assert (await bench.create(request_id="one", seed=job.seed)).job_id == job.job_id
        for other in ({"prompt": "a square"}, {"seed": job.seed + 1}, {"num_inference_steps": 3}):
            with pytest.raises(AlreadyExists):
                await bench.create(request_id="one", **other)


async def test_a_dead_letter_keeps_its_request(open_bench: OpenBench) -> None:
    async with open_bench(attempts_max=1) as bench:
        rank = await bench.encoder()
        dead = await bench.fail(await bench.create(prompt=LONG), rank)
        assert dead.dead_letter
        assert await size_of_requests(bench.journal) > len(LONG)


async def test_a_clients_unfinished_bytes_have_a_bound_of_their_own(open_bench: OpenBench) -> None:
    async with open_bench(client_bytes_max=150_000) as bench:
        await bench.encoder()
        jobs_of_alice = [await bench.create(ALICE, prompt=LONG) for _ in range(2)]
        with pytest.raises(QuotaFull, match=r"token:alice.*client_bytes_max is 150000"):
            await bench.create(ALICE, prompt=LONG)
        await bench.create(BOB, prompt=LONG)
        await bench.controller.lifecycle.cancel(jobs_of_alice[0].job_id)
        await bench.create(ALICE, prompt=LONG)
    async with open_bench(client_bytes_max=150_000) as bench:  # counted again after a restart
        await bench.controller.holdings.recover()
        await bench.encoder("again")
        with pytest.raises(QuotaFull):
            await bench.create(ALICE, prompt=LONG)


async def test_a_request_that_cannot_be_read_fails_its_job_alone(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.encoder()
        job = await bench.create()
        await bench.journal.run(lambda db: db.execute("UPDATE requests SET request = x'ffffff'") and None)
        assert await bench.journal.get_request(job.job_id) is None


def entry(number: int, state: int = JOB_STATE_QUEUED) -> JournalEntry:
    return JournalEntry(job=Job(job_id=f"job-{number}", request_id=f"request-{number}", state=state, seed=5))


async def test_format_2_is_brought_up(tmp_path: Path) -> None:
    rows = {1: entry(1), 2: entry(2, JOB_STATE_FAILED), 3: entry(3, JOB_STATE_FAILED)}
    for number in (2, 3):
        rows[number].job.end_time.FromSeconds(1_000)
    rows[3].job.dead_letter = True
    request = GenerationRequest(prompt=LONG, seed=5)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.executescript(FORMAT_2)
        for one in rows.values():
            head = (one.job.job_id, "", one.job.request_id, None, one.job.state, one.job.dead_letter)
            columns = "job_id, client, request_id, retry_of, state, dead, entry, request"
            body = (one.SerializeToString(), request.SerializeToString())
            db.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*head, *body))
    for _ in range(2):
        async with Journal(tmp_path) as journal:
            assert [one.job.job_id for one in await journal.unfinished(sorted(jobs.OVER))] == ["job-1"]
            kept = {n: await journal.get_request(f"job-{n}") for n in rows}
            assert {n: one is not None for n, one in kept.items()} == {1: True, 2: False, 3: True}
            found = await journal.get("job-2")
            assert found is not None
            assert found.request_sha256 == journal_file.digest_of(GenerationRequest(prompt=LONG))
            assert await journal.rank_of("new") == 8


async def test_a_start_reads_no_requests(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        for number in range(2):
            await journal.add(entry(number), GenerationRequest(prompt="p" * 2**25))
    before = bytes_read()
    async with Journal(tmp_path) as journal:
        assert len(await journal.unfinished([])) == 2
    assert bytes_read() - before < 2**20


def bytes_read() -> int:
    """By this process, from files and all else."""
    (line,) = (one for one in Path("/proc/self/io").read_text().splitlines() if one.startswith("rchar"))
    return int(line.split()[1])


async def test_a_damaged_file_ends_all_calls_and_is_looked_at_at_the_next_start(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        for number in range(4):
            await journal.add(entry(number), GenerationRequest(prompt=LONG))
    file = tmp_path / "journal.db"
    whole = bytearray(file.read_bytes())
    with closing(sqlite3.connect(file)) as db:
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'requests'"
        (root,) = db.execute(sql).fetchone()
    whole[(root - 1) * page_bytes : root * page_bytes] = b"\xa5" * page_bytes
    file.write_bytes(whole)
    async with Journal(tmp_path) as journal:
        for _ in range(2):
            with pytest.raises(JournalDamaged):
                await journal.get_request("job-1")
        with pytest.raises(JournalDamaged):
            await journal.next_epoch()  # nothing is promised any more
        assert journal.ended.done()
    with pytest.raises(InvalidRequest, match="put a backup in its place"):
        await Journal(tmp_path).__aenter__()
    (tmp_path / journal_file.SUSPECT).unlink()


async def test_a_file_that_may_not_be_written_is_no_full_disk(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.next_epoch()
        await journal.run(lambda db: db.execute("PRAGMA query_only = 1") and None)
        with pytest.raises(JournalDamaged, match="can't be used"):
            await journal.next_epoch()
        assert journal.ended.done()


async def test_a_request_that_can_not_be_read_holds_up_no_migration(tmp_path: Path) -> None:
    one = entry(1)
    head = (one.job.job_id, "", one.job.request_id, None, one.job.state, one.job.dead_letter)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.executescript(FORMAT_2)
        columns = "job_id, client, request_id, retry_of, state, dead, entry, request"
        body = (one.SerializeToString(), b"\xff no message")
        db.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*head, *body))
    async with asyncio.timeout(30), Journal(tmp_path) as journal:
        assert [kept.job.job_id for kept in await journal.unfinished(sorted(jobs.OVER))] == ["job-1"]
        assert await journal.get_request("job-1") is None
