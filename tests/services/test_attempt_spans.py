"""What traces show of attempts: each once, at its end, by the controller, whatever became of its worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.messages import token_for
from tests.services.conftest import Bench, OpenBench
from tests.services.test_attempts import complete, leave, register
from tests.telemetry.receiver import Received, Receiver
from triptych import telemetry
from triptych.errors import Fenced, LeaseLost
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.fleet_service_pb2 import StartPhaseResponse
from triptych.v1.job_pb2 import Job

ERROR = 2
"""Status.STATUS_CODE_ERROR of opentelemetry.proto.trace.v1."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as started:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", started.endpoint)
        yield started


async def create(bench: Bench) -> Job:
    with telemetry.span("accept"):
        return await bench.create()


async def start(bench: Bench, role: Role.ValueType, rank: int) -> tuple[Claimed, StartPhaseResponse]:
    await bench.controller.upkeep.tick()
    await bench.core.dispatcher.publish_waiting()
    claimed = await bench.rings[role].claim(rank)
    assert claimed is not None
    return claimed, await bench.controller.phases.start(fleet_pb.StartPhaseRequest(token=token_for(claimed, role)))


def attempts(receiver: Receiver) -> list[Received]:
    """The spans of attempts, in the order of their ends, each within the call that accepted the job."""
    spans = receiver.spans
    (accept,) = [span for span in spans if span.name == "accept"]
    found = sorted((span for span in spans if span.name.startswith("attempt ")), key=lambda span: span.end_ns)
    assert {(span.trace_id, span.parent_id) for span in found} == {(accept.trace_id, accept.span_id)}
    return found


async def test_a_worker_that_died_leaves_a_failed_attempt_and_no_orphans(
    open_bench: OpenBench, receiver: Receiver
) -> None:
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            first, second = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
            job = await create(bench)
            claimed, started = await start(bench, ROLE_ENCODER, first)
            with telemetry.within(started.traceparent), telemetry.span("stage.run"):  # of the worker that dies
                pass
            lost_s = time.time()
            await bench.controller.evictions.evict(first, "it was silent for 10 s")
            again, started_again = await start(bench, ROLE_ENCODER, second)
            await complete(bench, again, ROLE_ENCODER, 1)
            took_s = time.time() - lost_s
    died, done = attempts(receiver)
    assert (died.status_code, died.status_message) == (ERROR, "it was silent for 10 s")
    assert died.attributes == {
        "triptych.job_id": job.job_id,
        "triptych.role": "encoder",
        "triptych.rank": first,
        "triptych.generation": 0,
        "triptych.attempt": 0,
        "triptych.outcome": "failed",
        "triptych.kind": "worker_died",
        "triptych.reason": "it was silent for 10 s",
    }
    assert died.start_ns < lost_s * 1e9 < died.end_ns
    (stage,) = [span for span in receiver.spans if span.name == "stage.run"]
    assert (stage.trace_id, stage.parent_id) == (died.trace_id, died.span_id)
    assert started_again.earlier_traceparent == started.traceparent
    assert (done.status_code, done.attributes["triptych.outcome"], done.attributes["triptych.attempt"]) == (
        0,
        "completed",
        claimed.lease.attempt + 1,
    )
    # It counts from the redelivery, not from the first publish.
    assert 0 <= started_again.wait.ToNanoseconds() / 1e9 <= took_s


async def test_a_wait_begins_when_the_job_is_ready_again(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        first, second = [await register(bench, name, ROLE_ENCODER) for name in ("e1", "e2")]
        job = await bench.create()
        await start(bench, ROLE_ENCODER, first)
        entry = bench.core.ledger.active[job.job_id]
        assert entry.ready_time == entry.job.create_time
        await bench.controller.evictions.evict(first, "it was silent")
        entry = bench.core.ledger.active[job.job_id]
        assert entry.ready_time == entry.job.update_time
        _claimed, started = await start(bench, ROLE_ENCODER, second)
        entry = bench.core.ledger.active[job.job_id]
        assert started.wait.ToNanoseconds() == entry.attempt_time.ToNanoseconds() - entry.ready_time.ToNanoseconds()


async def test_a_dead_letters_trace_shows_why(open_bench: OpenBench, receiver: Receiver) -> None:
    with telemetry.setup("controller"):
        async with open_bench(attempts_max=1) as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            await create(bench)
            claimed, _started = await start(bench, ROLE_ENCODER, rank)
            await bench.controller.phases.fail(
                fleet_pb.FailPhaseRequest(
                    reason=fleet_pb.FAILURE_REASON_STAGE_ERROR,
                    message="RuntimeError: it broke",
                    token=token_for(claimed, ROLE_ENCODER),
                )
            )
    (failed,) = attempts(receiver)
    assert (failed.status_code, failed.status_message) == (ERROR, "RuntimeError: it broke")
    assert failed.attributes["triptych.dead_letter"] is True
    assert failed.attributes["triptych.kind"] == "stage_error"


async def test_a_room_that_is_lost_while_nobody_reads_it_is_seen(open_bench: OpenBench, receiver: Receiver) -> None:
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            await create(bench)
            claimed, _started = await start(bench, ROLE_ENCODER, rank)
            await complete(bench, claimed, ROLE_ENCODER, 1)
            await leave(bench, rank)
    done, lost = attempts(receiver)
    assert done.attributes["triptych.outcome"] == "completed"
    assert (lost.name, lost.status_code, lost.attributes["triptych.kind"]) == (
        "attempt transformer",
        ERROR,
        "room_lost",
    )
    assert lost.span_id != done.span_id


async def test_a_completion_that_comes_too_late_is_seen(open_bench: OpenBench, receiver: Receiver) -> None:
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            job = await create(bench)
            claimed, _started = await start(bench, ROLE_ENCODER, rank)
            await bench.controller.lifecycle.cancel(job.job_id)
            with pytest.raises(LeaseLost):
                await complete(bench, claimed, ROLE_ENCODER, 1)
    (cancelled,) = attempts(receiver)
    assert (cancelled.status_code, cancelled.attributes["triptych.outcome"]) == (0, "cancelled")
    (refused,) = [span for span in receiver.spans if span.name == "completion.refused"]
    assert (refused.trace_id, refused.status_code) == (cancelled.trace_id, ERROR)
    assert refused.attributes["triptych.rank"] == rank
    assert "is over" in refused.attributes["triptych.reason"]


async def test_a_completion_of_a_worker_that_counts_as_dead_is_seen(open_bench: OpenBench, receiver: Receiver) -> None:
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            await create(bench)
            claimed, _started = await start(bench, ROLE_ENCODER, rank)
            await bench.controller.evictions.evict(rank, "it was silent")
            with pytest.raises(Fenced):
                await complete(bench, claimed, ROLE_ENCODER, 1)
    (refused,) = [span for span in receiver.spans if span.name == "completion.refused"]
    assert (refused.status_code, refused.attributes["triptych.rank"]) == (ERROR, rank)


async def test_a_completion_that_a_new_controller_will_take_is_not_refused(
    open_bench: OpenBench, receiver: Receiver
) -> None:
    """It hasn't heard of the worker yet."""
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            await create(bench)
            claimed, _started = await start(bench, ROLE_ENCODER, rank)
        async with open_bench() as bench:
            with pytest.raises(Fenced):
                await complete(bench, claimed, ROLE_ENCODER, 1)
    assert [span.name for span in receiver.spans] == ["accept"]


async def test_the_next_controller_records_what_the_last_one_began(open_bench: OpenBench, receiver: Receiver) -> None:
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            job = await create(bench)
            _claimed, started = await start(bench, ROLE_ENCODER, rank)
            began_ns = bench.core.ledger.active[job.job_id].attempt_time.ToNanoseconds()
        async with open_bench() as bench:
            async for _entry in bench.core.ledger.load():
                pass
            await bench.controller.lifecycle.cancel(job.job_id)
    (cancelled,) = attempts(receiver)
    assert started.traceparent.split("-")[2] == cancelled.span_id
    assert cancelled.start_ns == began_ns


async def test_an_attempt_of_an_older_controller_does_not_begin_in_1970(
    open_bench: OpenBench, receiver: Receiver
) -> None:
    """It ran while the controller was upgraded: the older one wrote neither its time nor its span's id."""
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            job = await create(bench)
            await start(bench, ROLE_ENCODER, rank)
            entry = bench.core.ledger.active[job.job_id]
            for field in ("attempt_time", "attempt_traceparent", "ready_time"):
                entry.ClearField(field)  # type: ignore[arg-type]
            await bench.journal.save(entry)
        async with open_bench() as bench:
            async for _entry in bench.core.ledger.load():
                pass
            await bench.controller.lifecycle.cancel(job.job_id)
    (cancelled,) = attempts(receiver)
    assert cancelled.start_ns == cancelled.end_ns > 0


async def test_what_was_not_sampled_is_not_recorded(
    open_bench: OpenBench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with telemetry.setup("controller"):
        async with open_bench() as bench:
            rank = await register(bench, "e1", ROLE_ENCODER)
            job = await create(bench)
            _claimed, started = await start(bench, ROLE_ENCODER, rank)
            await bench.controller.lifecycle.cancel(job.job_id)
    assert not int(started.traceparent[-2:], 16) & 1
    assert receiver.spans == []


async def test_without_traces_nothing_is_kept(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "t1", ROLE_ENCODER)
        await register(bench, "t2", ROLE_TRANSFORMER)
        job = await bench.create()
        _claimed, started = await start(bench, ROLE_ENCODER, rank)
        assert (started.traceparent, started.earlier_traceparent) == ("", "")
        assert bench.core.ledger.active[job.job_id].attempt_traceparent == ""
