"""How many workers a role needs: properties of the pure core, loops of it with queues and an HPA, and KEDA's calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller import autoscaling
from services.controller.autoscaling import Goal, RoleLoad, StageTimes, wanted_count
from services.controller.autoscaling_service import LOOK_S, AutoscalingServicer
from tests.autoscaling.hpa import Hpa
from tests.autoscaling.queues import Queues
from tests.messages import token_for
from tests.services.conftest import WAIT_S, Bench, OpenBench
from triptych import rpc
from triptych.externalscaler import externalscaler_pb2 as pb
from triptych.externalscaler.externalscaler_pb2_grpc import ExternalScalerStub, add_ExternalScalerServicer_to_server
from triptych.roles import ROLES
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER

STAGE_S = {ROLE_ENCODER: 0.5, ROLE_TRANSFORMER: 5.0, ROLE_DECODER: 1.0}
MANY = 10**6


def load_of(jobs: Mapping[int, int], workers: int = 0, stage_s: Mapping[int, float] = STAGE_S) -> autoscaling.Load:
    return {role: RoleLoad(jobs.get(role, 0), stage_s[role], workers, 0) for role in ROLES}


def goal(role: int = ROLE_TRANSFORMER, wait_s: float = 60.0, least: int = 0, most: int = MANY) -> Goal:
    return Goal(role, wait_s, least, most)  # type: ignore[arg-type]


def test_a_queue_of_encodes_asks_for_every_role_in_the_ratio_of_their_times() -> None:
    load = load_of({ROLE_ENCODER: 1000})
    counts = [wanted_count(goal(role), load, 0.0) for role in ROLES]
    assert counts == [math.ceil(500 / 60.5), math.ceil(5000 / 65.5), math.ceil(1000 / 66.5)]


def test_work_that_has_passed_a_role_is_none_for_it() -> None:
    load = load_of({ROLE_DECODER: 100})
    assert [wanted_count(goal(role), load, 0.0) for role in ROLES] == [0, 0, 2]


def test_no_wait_at_all_is_a_worker_for_each_job() -> None:
    assert wanted_count(goal(ROLE_ENCODER, wait_s=0.0), load_of({ROLE_ENCODER: 7}), 0.0) == 7


def test_before_the_first_measure_one_worker_shows_it_and_none_is_taken_away() -> None:
    unknown = dict.fromkeys(ROLES, 0.0)
    assert wanted_count(goal(), load_of({ROLE_ENCODER: 50}, 0, unknown), 0.0) == 1
    assert wanted_count(goal(), load_of({ROLE_ENCODER: 50}, 6, unknown), 0.0) == 6
    assert wanted_count(goal(), load_of({}, 6, unknown), 0.0) == 0


def test_what_was_busy_lately_stays() -> None:
    """2.1 of three: two would queue without end. At 1.5 of three, two have space for a quarter more."""
    assert wanted_count(goal(), load_of({}, 3), 2.1) == 3
    assert wanted_count(goal(), load_of({}, 3), 1.5) == 2
    assert wanted_count(goal(), load_of({}, 3), 0.0) == 0


def test_quarantined_workers_are_replaced() -> None:
    load = dict(load_of({ROLE_ENCODER: 100}))
    before = wanted_count(goal(), load, 0.0)
    load[ROLE_TRANSFORMER] = load[ROLE_TRANSFORMER]._replace(quarantined_count=2)
    assert wanted_count(goal(), load, 0.0) == before + 2


JOBS = st.integers(0, 10_000)
TIMES = st.floats(0.01, 600.0)


@given(
    role=st.sampled_from(ROLES),
    jobs=st.tuples(JOBS, JOBS, JOBS),
    times=st.tuples(TIMES, TIMES, TIMES),
    wait_s=st.floats(0.0, 3600.0),
    workers=st.integers(0, 500),
    busy=st.floats(0.0, 500.0),
)
def test_bounds(
    role: int, jobs: tuple[int, ...], times: tuple[float, ...], wait_s: float, workers: int, busy: float
) -> None:
    load = {one: RoleLoad(n, s, workers, 0) for one, n, s in zip(ROLES, jobs, times, strict=True)}
    ahead = sum(jobs[: ROLES.index(role) + 1])  # type: ignore[arg-type]
    count = wanted_count(goal(role, wait_s), load, busy)
    assert count <= max(ahead, workers), "never more than jobs, and no growth without them"
    assert (count == 0) == (ahead == 0 and (busy == 0 or workers == 0)), "zero exactly where there is nothing to do"
    assert count >= min(workers, math.ceil(busy)), "what was busy lately stays"
    more = {one: entry._replace(job_count=entry.job_count + 1) for one, entry in load.items()}
    assert wanted_count(goal(role, wait_s), more, busy) >= count
    assert 2 <= wanted_count(goal(role, wait_s, least=2, most=5), load, busy) <= 5
    again = {one: entry._replace(worker_count=count) for one, entry in load.items()}
    settled = wanted_count(goal(role, wait_s), again, min(busy, count))
    assert settled <= count, "to follow the advice is no reason for more"


def test_measures_are_bounded_and_recent() -> None:
    times = StageTimes()
    assert times.mean_s(ROLE_ENCODER) == 0.0
    for second in range(5000):
        times.completed(ROLE_ENCODER, float(second), 2.0 if second < 4950 else 3.0)
    assert times.mean_s(ROLE_ENCODER) == 3.0
    assert times.busy_count(ROLE_ENCODER, 5000.0, 10.0) == pytest.approx(3.0, abs=0.4)
    assert times.busy_count(ROLE_ENCODER, 5000.0, 1e9) == pytest.approx(2.0, abs=0.1), "of what it remembers"
    assert times.busy_count(ROLE_ENCODER, 9000.0, 10.0) == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_a_step_to_ten_times_the_load_settles(seed: int) -> None:
    """Queues, the HPA's formula and starts that take 40 s, by a clock of their own."""
    queues = Queues(seed, STAGE_S, start_s=40.0, wait_s=180.0)
    queues.run(600.0, jobs_per_s=0.05)
    queues.run(2400.0, jobs_per_s=0.5)
    for role in ROLES:
        needed = 0.5 * STAGE_S[role]
        settled = queues.counts[role]
        assert math.ceil(needed) <= settled <= math.ceil(needed) + 1
        assert max(queues.seen[role]) <= settled + 1
        assert queues.changes(role, since_s=1800.0) <= 1, "no flapping"
    assert queues.wait_s(since_s=1800.0) <= 2 * 180.0
    queues.run(1800.0, jobs_per_s=0.0)
    assert queues.counts == dict.fromkeys(ROLES, 0)
    assert queues.is_empty


def test_the_hpa_follows_kubernetes_formula() -> None:
    """ceil(metric / target), not within a tenth, up by at most 100 % or four a step, down after the window."""
    hpa = Hpa(most=50, window_s=300.0, cooldown_s=300.0)
    assert hpa.wanted(0.0, 0, 0, False) == 0
    assert hpa.wanted(15.0, 0, 3, True) == 1
    assert hpa.wanted(30.0, 1, 3, True) == 3
    assert hpa.wanted(45.0, 20, 21, True) == 20
    assert hpa.wanted(60.0, 20, 23, True) == 23
    assert hpa.wanted(75.0, 23, 2, True) == 23
    assert hpa.wanted(400.0, 23, 2, True) == 2
    assert hpa.wanted(500.0, 2, 0, False) == 2
    assert hpa.wanted(700.0, 2, 0, False) == 1
    assert hpa.wanted(701.0, 1, 0, False) == 0


@asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[ExternalScalerStub]:
    service = (add_ExternalScalerServicer_to_server, AutoscalingServicer(bench.core), "externalscaler.ExternalScaler")
    server = await rpc.start_server("127.0.0.1:0", [service])
    async with rpc.open_channel(server.address) as channel:
        yield ExternalScalerStub(channel)
    await server.stop(0)


@pytest.fixture
async def served(open_bench: OpenBench) -> AsyncIterator[tuple[Bench, ExternalScalerStub]]:
    async with open_bench() as bench, serving(bench) as stub:
        yield bench, stub


def reference(role: str, **metadata: str) -> pb.ScaledObjectRef:
    found = {"scalerAddress": "controller:7070", "role": role, **metadata}
    return pb.ScaledObjectRef(name=role, namespace="triptych", scalerMetadata=found)


async def polled(stub: ExternalScalerStub, asked: pb.ScaledObjectRef) -> tuple[float, bool]:
    """As KEDA polls: the spec when the ScaledObject is made, then metrics and activity, each time."""
    (spec,) = (await stub.GetMetricSpec(asked, timeout=WAIT_S)).metricSpecs
    assert spec.targetSizeFloat == spec.targetSize == 1
    request = pb.GetMetricsRequest(scaledObjectRef=asked, metricName=spec.metricName)
    (value,) = (await stub.GetMetrics(request, timeout=WAIT_S)).metricValues
    assert value.metricName == spec.metricName
    assert value.metricValue == value.metricValueFloat
    return value.metricValueFloat, (await stub.IsActive(asked, timeout=WAIT_S)).result


async def until_said(stub: ExternalScalerStub, asked: pb.ScaledObjectRef) -> None:
    """Return when the stream says something."""
    activity = stub.StreamIsActive(asked, timeout=WAIT_S)
    await activity.read()
    activity.cancel()


async def test_as_keda_calls_it(served: tuple[Bench, ExternalScalerStub]) -> None:
    bench, stub = served
    for role in ("encoder", "transformer", "decoder"):
        assert await polled(stub, reference(role)) == (0, False)
        assert await polled(stub, reference(role, minReplicas="2")) == (2, True)
    rank = await bench.encoder()
    for _ in range(6):
        await bench.create()
    assert await polled(stub, reference("transformer")) == (1, True)
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[ROLE_ENCODER].claim(rank)
    assert claimed is not None
    token = token_for(claimed, ROLE_ENCODER)
    await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token))
    await asyncio.sleep(0.01)
    metric, is_active = await polled(stub, reference("encoder", targetWaitSeconds="0"))
    assert (metric, is_active) == (6, True), "the first still runs, and its time so far is a measure"
    assert await polled(stub, reference("encoder", targetWaitSeconds="0", maxReplicas="4")) == (4, True)


async def test_streams_push_what_changes(served: tuple[Bench, ExternalScalerStub]) -> None:
    bench, stub = served
    activity = stub.StreamIsActive(reference("decoder"), timeout=WAIT_S)
    assert not (await activity.read()).result
    job = await bench.create()
    assert (await activity.read()).result
    await bench.controller.lifecycle.cancel(job.job_id)
    assert not (await activity.read()).result
    activity.cancel()
    specs = stub.StreamMetricSpec(reference("decoder"), timeout=WAIT_S)
    assert [spec.metricName for spec in (await specs.read()).metricSpecs] == ["triptych-decoder"]
    specs.cancel()


async def test_jobs_of_another_model_ask_for_nothing(served: tuple[Bench, ExternalScalerStub]) -> None:
    bench, stub = served
    await bench.create()
    bench.core.model.present.config_digest = "07e4" * 16  # type: ignore[union-attr]
    assert await polled(stub, reference("encoder")) == (0, False)


async def test_a_fleet_without_a_model_asks_for_a_worker_of_each_role(
    served: tuple[Bench, ExternalScalerStub],
) -> None:
    bench, stub = served
    bench.core.model.present = None
    assert await polled(stub, reference("decoder")) == (1, True)


async def test_nothing_is_said_while_workers_come_back(
    open_bench: OpenBench,
) -> None:
    """After a restart: fewer than there are would be counted. KEDA keeps what there is where a call fails."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        await bench.create()
    async with open_bench(worker_timeout_s=600.0) as bench, serving(bench) as stub:
        await bench.controller.holdings.recover()
        asked = reference("encoder")
        (spec,) = (await stub.GetMetricSpec(asked, timeout=WAIT_S)).metricSpecs
        request = pb.GetMetricsRequest(scaledObjectRef=asked, metricName=spec.metricName)
        for call in (stub.IsActive(asked, timeout=WAIT_S), stub.GetMetrics(request, timeout=WAIT_S)):
            with pytest.raises(grpc.aio.AioRpcError, match="1 workers have yet to register again") as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        activity = stub.StreamIsActive(asked, timeout=WAIT_S)
        said = asyncio.ensure_future(activity.read())
        assert not (await asyncio.wait([said], timeout=4 * LOOK_S))[0], "nothing yet"
        assert await bench.encoder() == rank
        assert (await said).result
        assert await polled(stub, asked) == (1, True)
        activity.cancel()


async def test_a_worker_that_stays_away_is_not_waited_for(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.encoder()
        await bench.create()
    async with open_bench(worker_timeout_s=0.2, heartbeat_interval_s=0.05) as bench, serving(bench) as stub:
        await bench.controller.holdings.recover()
        await asyncio.wait_for(until_said(stub, reference("encoder")), WAIT_S)
        assert len(bench.core.fleet.members) == 1, "nobody has evicted it yet"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"role": ""}, "scalerMetadata.role is ''; accepted: encoder, transformer, decoder"),
        ({"role": "painter"}, "scalerMetadata.role is 'painter'"),
        ({"targetWait": "3"}, "scalerMetadata.targetWait is '3'; accepted: one of the keys role, targetWaitSeconds"),
        ({"targetWaitSeconds": "soon"}, "a number from 0 to 86400"),
        ({"targetWaitSeconds": "nan"}, "a number from 0 to 86400"),
        ({"maxReplicas": "0"}, "a number from 1 to 1000"),
        ({"minReplicas": "5", "maxReplicas": "4"}, "a number from 0 to 4"),
    ],
)
async def test_metadata_that_mean_nothing_are_refused(
    served: tuple[Bench, ExternalScalerStub], metadata: dict[str, str], words: str
) -> None:
    _bench, stub = served
    asked = reference("encoder")
    asked.scalerMetadata.update(metadata)
    for call in (stub.IsActive, stub.GetMetricSpec):
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await call(asked, timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
