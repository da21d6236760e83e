"""Controllers as processes: what ends the active one, and that the other then serves soon; over both databases."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from services.controller.journal import Journal
from services.controller.journal_postgres import PostgresStore
from tests.chaos.report import success_counts
from tests.clients.test_cli import triptych
from tests.failures import loads
from tests.failures.proxy import Proxy
from tests.fleet.processes import wait_until
from tests.journal.conformance import entry
from tests.standby.pair import LEASE_S, NAMES, WAIT_S, Pair
from tests.standby.postgres import PASSWORD, Postgres
from triptych.rpc import ALIVE
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client.commands.trace import read
from triptych_client.job_states import is_over

JOBS = 16
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'triptych' ORDER BY backend_start"
"""Of controllers."""
BOUND_S = 2 * LEASE_S
"""Within twice the lease."""
UPDATE_S = 0.003
"""Of a slow database, for a row: a page of them takes less than a lease."""


@pytest.fixture(params=["sqlite", "postgres"])
def flags(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Where journal and results are."""
    if request.param == "sqlite":
        return ()
    postgres: Postgres = request.getfixturevalue("postgres")
    return ("--journal", postgres.url(postgres.new_schema()), "--result-url", str(tmp_path / "results"))


async def add_jobs(store: PostgresStore, count: int) -> None:
    """So many, of no model yet."""
    async with Journal(store) as journal:
        await asyncio.gather(*(journal.add(entry(number), GenerationRequest()) for number in range(count)))


@pytest.fixture
def pair(flags: tuple[str, ...], tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair", flags) as started:
        yield started


def refusal(pair: Pair, name: str) -> grpc.RpcError:
    """What a controller that isn't active says to a client."""
    with grpc.insecure_channel(pair.addresses[name]) as channel, pytest.raises(grpc.RpcError) as refused:
        GenerationServiceStub(channel).ListJobs(pb.ListJobsRequest(), timeout=WAIT_S)
    return refused.value


def test_a_standby_refuses_calls_and_says_so_to_probes(pair: Pair) -> None:
    standby = pair.other(pair.active())
    error = refusal(pair, standby)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "stands by" in str(error.details())
    assert not pair.is_serving(standby, "")
    assert [pair.is_serving(name, ALIVE) for name in NAMES] == [True, True]


def test_after_a_kill_the_other_serves_within_twice_the_lease(pair: Pair) -> None:
    for _ in range(2):  # and back again
        killed = pair.active()
        assert pair.taken_over_s(pair.kill) < BOUND_S
        pair.start(killed)
        assert not pair.is_serving(killed)


def test_one_that_is_told_to_stop_gives_its_lease_back(pair: Pair) -> None:
    def stop(name: str) -> None:
        pair.processes[name].terminate()
        assert pair.processes[name].wait(WAIT_S) == 0

    assert pair.taken_over_s(stop) < LEASE_S


def test_a_standby_that_is_told_to_stop_ends(pair: Pair) -> None:
    active = pair.active()
    standby = pair.processes[pair.other(active)]
    standby.terminate()
    assert standby.wait(WAIT_S) == 0
    assert pair.is_serving(active)


def test_a_start_may_take_longer_than_the_lease(postgres: Postgres, tmp_path: Path) -> None:
    """The lease is renewed meanwhile: here the database takes its time over each old job."""
    schema = postgres.new_schema()
    count = int(1.5 * LEASE_S / UPDATE_S)
    asyncio.run(add_jobs(PostgresStore(postgres.url(schema)), count))
    postgres.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN PERFORM pg_sleep({UPDATE_S}); RETURN NEW; END'",
        schema,
    )
    postgres.execute("CREATE TRIGGER waits BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION wait()", schema)
    flags = ("--journal", postgres.url(schema), "--result-url", str(tmp_path / "results"))
    with Pair(tmp_path / "pair", flags) as pair:
        assert f"recovered {count} unfinished jobs in epoch 1" in pair.log(pair.active())
        assert postgres.execute("SELECT value FROM meta WHERE key = 'epoch'", schema) == [(b"1",)]


def test_one_that_stood_still_ends_when_it_goes_on(pair: Pair) -> None:
    """It neither writes nor answers; its supervisor starts it as a standby."""
    old = pair.active()
    with grpc.insecure_channel(pair.addresses[old]) as channel:
        stub = GenerationServiceStub(channel)
        stub.ListJobs(pb.ListJobsRequest(), timeout=WAIT_S)
        assert pair.taken_over_s(pair.stop_still) < BOUND_S
        late = stub.ListJobs.future(pb.ListJobsRequest(), timeout=WAIT_S)  # it waits in the socket
        pair.go_on(old)
        # CANCELLED is what a server leaves of calls that it has when it ends; clients take it for the same.
        assert late.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert pair.processes[old].wait(WAIT_S) == 1
    assert "error: " in pair.log(old).splitlines()[-1]
    assert pair.active() == pair.other(old)
    pair.start(old)
    assert not pair.is_serving(old)


@pytest.mark.parametrize("end", [Pair.kill, Pair.stop_still])
def test_under_load_no_job_is_lost_and_none_is_done_twice(
    flags: tuple[str, ...], tmp_path: Path, end: Callable[[Pair, str], None]
) -> None:
    """Clients and workers know both controllers; a call that hangs on a host that stands still is made again."""
    with Pair(tmp_path / "pair", flags, has_workers=True) as pair, pair.client() as client:
        job_ids = [client.submit(loads.request(seed)).job_id for seed in range(JOBS // 2)]
        wait_until(lambda: any(is_over(client.get_job(job_id)) for job_id in job_ids), WAIT_S, "some are done")
        pids = [pair.pid(name) for name in pair.workers]
        old = pair.active()
        end(pair, old)
        job_ids += [client.submit(loads.request(seed)).job_id for seed in range(JOBS // 2, JOBS)]
        assert pair.active() == pair.other(old)
        for seed, job in enumerate(loads.wait_over(client, job_ids, 2 * WAIT_S).values()):
            loads.check(client, job, seed, tmp_path)
            assert len(job.artifacts) == 1
        pair.go_on(old)
        assert pair.processes[old].wait(WAIT_S) != 0
        assert [pair.pid(name) for name in pair.workers] == pids
        counts = sum((success_counts(tmp_path / "pair" / f"{name}.log") for name in NAMES), Counter())
        assert counts == dict.fromkeys(job_ids, 1)
        shown = triptych("status", "--endpoint", pair.endpoint)
        assert shown.returncode == 0, shown.stderr
        assert f"{JOBS} succeeded" in shown.stdout


def test_a_jobs_trace_goes_on_at_the_next_controller(flags: tuple[str, ...], tmp_path: Path) -> None:
    with Pair(tmp_path / "pair", flags, has_workers=True) as pair, pair.client() as client:
        job_id = client.submit(loads.request(1)).job_id
        wait_until(lambda: client.get_job(job_id).step, WAIT_S, "it is denoised")
        pair.kill(pair.active())
        loads.check(client, loads.wait_over(client, [job_id], WAIT_S)[job_id], 1, tmp_path)
    spans = [span for _depth, span in read(pair.trace_file, job_id).spans]
    known = {span.span_id for span in spans}
    (root,) = [span for span in spans if span.parent_id not in known]
    assert (root.name, root.parent_id) == ("CreateJob", "")
    assert sorted(span.name for span in spans if span.name.startswith("attempt ")) == [
        "attempt decoder",
        "attempt encoder",
        "attempt transformer",
    ]


def test_one_that_is_cut_off_from_its_database_ends(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    schema = postgres.new_schema()
    with Proxy(f"127.0.0.1:{postgres.port}") as proxy:
        far = postgres.url(schema, *proxy.address.split(":"))
        results = ("--result-url", str(tmp_path / "results"))
        pair = Pair(tmp_path / "pair", results)
        near = postgres.url(schema, "127.0.0.1")
        pair.flags_by_name = {NAMES[0]: ("--journal", far), NAMES[1]: ("--journal", near)}
        with pair:
            assert pair.active() == NAMES[0]
            assert pair.taken_over_s(lambda _name: proxy.cut()) < BOUND_S
            assert pair.processes[NAMES[0]].wait(WAIT_S) == 1
            proxy.mend()
            pair.start(NAMES[0])
            assert pair.active() == NAMES[1]
            pair.processes[NAMES[1]].send_signal(signal.SIGKILL)
            wait_until(lambda: pair.active() == NAMES[0], WAIT_S, "the first serves again")


@pytest.mark.parametrize("is_told", [False, True], ids=["by itself", "when it is told to stop"])
def test_one_whose_database_says_nothing_any_more_ends(postgres: Postgres, tmp_path: Path, is_told: bool) -> None:
    """Its session hangs; no connection breaks."""
    schema = postgres.new_schema()
    before = {pid for (pid,) in postgres.execute(SESSIONS)}
    flags = ("--journal", postgres.url(schema), "--result-url", str(tmp_path / "results"))
    with Pair(tmp_path / "pair", flags) as pair:
        assert pair.active() == NAMES[0]
        session = next(int(str(pid)) for (pid,) in postgres.execute(SESSIONS) if pid not in before)

        def stand_still(name: str) -> None:
            os.kill(session, signal.SIGSTOP)
            if is_told:
                pair.processes[name].terminate()

        try:
            assert pair.taken_over_s(stand_still) < BOUND_S
            assert pair.processes[NAMES[0]].wait(WAIT_S) == int(not is_told)
        finally:
            os.kill(session, signal.SIGCONT)
        assert is_told or "could not be renewed" in pair.log(NAMES[0]).splitlines()[-1]
