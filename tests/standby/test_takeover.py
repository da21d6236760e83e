"""Controllers as processes: what ends the active one, and that the other then serves soon; over both databases."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.failures.proxy import Proxy
from tests.fleet.processes import wait_until
from tests.standby.pair import LEASE_S, NAMES, WAIT_S, Pair
from tests.standby.postgres import PASSWORD, Postgres
from triptych.rpc import ALIVE
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub

BOUND_S = 2 * LEASE_S
"""Within twice the lease."""


@pytest.fixture(params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    flags: tuple[str, ...] = ()
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        flags = ("--journal", postgres.url(postgres.new_schema()), "--result-url", str(tmp_path / "results"))
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
