"""The journal in PostgreSQL, as every journal; and what only a server can do to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from services.controller.journal import Journal
from services.controller.journal_postgres import PostgresStore
from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.journal.conformance import JournalConformance, entry, ids
from tests.journal.leases import LeaseConformance, OpenStore
from tests.standby.postgres import PASSWORD, Postgres
from triptych.errors import InvalidRequest, JournalDamaged, JournalFull, Unavailable
from triptych.v1.job_pb2 import GenerationRequest

LAST = 2**62
ROOT = Path(__file__).parents[2]


class TestPostgres(JournalConformance):
    @pytest.fixture
    def store(self, postgres: Postgres) -> PostgresStore:
        return PostgresStore(postgres.url(postgres.new_schema()))


class TestPostgresLease(LeaseConformance):
    @pytest.fixture
    def open_store(self, postgres: Postgres) -> OpenStore:
        url = postgres.url(postgres.new_schema())
        return lambda lease_s: PostgresStore(url, lease_s)


async def test_a_session_that_breaks_is_replaced(postgres: Postgres) -> None:
    """What was under way is refused, and nothing of it is there."""
    schema = postgres.new_schema()
    async with Journal(PostgresStore(postgres.url(schema))) as journal:
        await journal.next_epoch()
        await journal.add(entry(1), GenerationRequest())
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'triptych'"
        postgres.execute(end)
        with pytest.raises(JournalFull):
            await journal.add(entry(2), GenerationRequest())
        assert not journal.ended.done()
        assert await journal.add(entry(2), GenerationRequest()) is None
        assert ids(await journal.page([], LAST, 9)) == ["job-2", "job-1"]


async def test_a_server_that_is_away_is_waited_for(postgres: Postgres) -> None:
    async with Journal(PostgresStore(postgres.url(postgres.new_schema()))) as journal:
        await journal.add(entry(1), GenerationRequest())
        postgres.stop()
        try:
            for _ in range(2):
                calls = [journal.counts() for _ in range(40)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(answer) for answer in answers} == {JournalFull}
                assert str(postgres.folder) not in str(answers[0]), "clients are told no hosts"
            with pytest.raises(Unavailable, match="can't be reached"):
                await Journal(PostgresStore(postgres.url("public"))).__aenter__()
        finally:
            postgres.start()
        assert ids(await journal.page([], LAST, 9)) == ["job-1"]


async def test_a_break_in_a_commit_ends_the_controller(postgres: Postgres) -> None:
    """Nobody knows whether it was made: the server dies while it commits, by a trigger that is checked then."""
    schema = postgres.new_schema()
    postgres.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'",
        schema,
    )
    async with Journal(PostgresStore(postgres.url(schema))) as journal:
        postgres.execute(
            "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON requests DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()",
            schema,
        )
        with pytest.raises(JournalDamaged, match="in a commit"):
            await journal.add(entry(1), GenerationRequest())
        with pytest.raises(JournalDamaged):
            await journal.counts()
        assert journal.ended.done()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("ALTER TABLE jobs RENAME TO gone", JournalDamaged),
        ("ALTER SEQUENCE jobs_sequence_seq MINVALUE 0 MAXVALUE 1", JournalFull),
    ],
)
async def test_what_passes_and_what_does_not(postgres: Postgres, change: str, kind: type[Exception]) -> None:
    schema = postgres.new_schema()
    async with Journal(PostgresStore(postgres.url(schema))) as journal:
        await journal.add(entry(1), GenerationRequest())
        postgres.execute(change, schema)
        with pytest.raises(kind):
            await journal.add(entry(2), GenerationRequest())


async def test_somebody_elses_schema_is_refused(postgres: Postgres) -> None:
    schema = postgres.new_schema()
    postgres.execute("CREATE TABLE jobs (title TEXT)", schema)
    with pytest.raises(InvalidRequest, match="a schema without tables"):
        await Journal(PostgresStore(postgres.url(schema))).__aenter__()


async def test_two_that_start_together_make_the_tables_once(postgres: Postgres) -> None:
    store = PostgresStore(postgres.url(postgres.new_schema()), lease_s=5.0)
    async with Journal(store) as first, Journal(store) as second, Journal(store) as third:
        assert [await one.counts() for one in (first, second, third)] == [{}, {}, {}]


def test_without_psycopg_a_sentence_says_what_to_install() -> None:
    """A controller in whose environment it can't be imported."""
    code = (
        "import runpy, sys; sys.modules['psycopg'] = None; runpy.run_module('services.controller', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--journal", "postgresql:///nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'triptych[postgres]'" in done.stderr.splitlines()[-1]


def test_a_fleet_works_on_it_and_goes_on_after_a_kill(postgres: Postgres, tmp_path: Path) -> None:
    schema = postgres.new_schema()
    with (
        fake_fleet(tmp_path / "fleet", 0.4, controller_flags=("--journal", postgres.url(schema))) as fleet,
        fleet.client() as client,
    ):
        ids = [client.submit(request(seed)).job_id for seed in range(3)]
        fleet.kill("controller")
        fleet.start("controller")
        for seed, job in enumerate(wait_over(client, ids, 60).values()):
            check(client, job, seed, tmp_path)
        assert not (tmp_path / "fleet" / "state" / "journal.db").exists()
        assert postgres.execute("SELECT COUNT(*) FROM jobs", schema) == [(3,)]
        assert len(postgres.execute("SELECT 1 FROM requests", schema)) == 0


async def test_the_password_comes_from_the_environment(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresStore(postgres.url(postgres.new_schema(), "127.0.0.1"))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(Unavailable, match="no password supplied"):
        await Journal(store).__aenter__()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    async with Journal(store) as journal:
        assert await journal.counts() == {}
