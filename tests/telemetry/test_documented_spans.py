"""The table of spans in docs/telemetry.md is what a receiver gets from a fleet, in both directions.

One fleet of fake stages has jobs that succeed, are cancelled, refused and broken, and one whose worker is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, messaging_attributes, rpc_attributes
from opentelemetry.semconv.attributes import error_attributes

from services.worker.health import FAILURES_MAX
from tests.failures.loads import PROMPT, fake_fleet, request, wait_over
from tests.fleet.processes import CONTROLLER, DEATH_TIMEOUT_S, Fleet, wait_until
from tests.telemetry.receiver import Received, Receiver, of_job, the_root
from tests.telemetry.tables import TELEMETRY, TEXT_ENCODER, quoted, table
from triptych import ids, telemetry
from triptych.errors import InvalidRequest
from triptych.v1 import encoder_service_pb2, fleet_service_pb2, generation_service_pb2
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_SUCCEEDED
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.room_pb2 import RoomRef
from triptych_client import Client

ERROR = 2
"""Status.STATUS_CODE_ERROR of opentelemetry.proto.trace.v1."""
SECONDS = 1.0
OVER_S = 120.0
CALL_S = 30.0
KINDS = ("", "internal", "server", "client", "producer", "consumer")
"""By the numbers of opentelemetry.proto.trace.v1."""
ROWS = [row for row in table(TELEMETRY, "### Spans") if row["process"] != TEXT_ENCODER]
"""tests/engines has the text encoder's."""
DOCUMENTED = {name: row for row in ROWS for name in quoted(row["span"])}


@dataclass
class Seen:
    """What a fleet's jobs were, and all spans that came of them."""

    spans: list[Received]
    succeeded: str
    foreign: str
    killed: str
    restarted: str
    refused: str
    dead: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("documented")
    with Receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        counts = {"transformer": 2}
        with (
            fake_fleet(folder, SECONDS, counts=counts, worker_timeout_s=DEATH_TIMEOUT_S) as fleet,
            telemetry.setup("triptych-client"),
            fleet.client() as client,
        ):
            found = Seen([], *scenes(fleet, client, folder))
        found.spans = receiver.spans
        yield found


def scenes(fleet: Fleet, client: Client, folder: Path) -> tuple[str, str, str, str, str, str]:
    """One job after another; the ids of those that tests ask for."""
    succeeded = client.generate(PROMPT, folder / "one.npy", height=16, width=16).job.job_id
    with grpc.insecure_channel(fleet.endpoint) as bare, grpc.insecure_channel(fleet.addresses["encoder-0"]) as direct:
        foreign = created_by_a_stranger(bare, client)
        stub = EncoderServiceStub(direct)
        with telemetry.span("of a caller"):
            job = stub.Generate(encoder_service_pb2.GenerateRequest(request=request(3)), timeout=CALL_S).job
        wait_over(client, [job.job_id], OVER_S)
        complete_too_late(bare, client, foreign)
    with telemetry.span("of a caller"):
        job = client.submit(request(4))
        wait_until(lambda: client.get_job(job.job_id).step, OVER_S, "it runs")
        client.cancel_job(job.job_id)
        wait_over(client, [job.job_id], OVER_S)
    with pytest.raises(InvalidRequest):
        client.create_job(PROMPT, height=-1)
    refused = client.create_job(PROMPT, height=16, width=16, parameters={"refuse": True}).job_id
    wait_over(client, [refused], OVER_S)
    killed = kill_under(fleet, client)
    restarted = restart_under(fleet, client)
    return succeeded, foreign, killed, restarted, refused, break_until_quarantined(fleet, client)


def created_by_a_stranger(channel: grpc.Channel, client: Client) -> str:
    """A job of a client without any traces."""
    message = generation_service_pb2.CreateJobRequest(request_id="a stranger's", request=request(2))
    job_id: str = GenerationServiceStub(channel).CreateJob(message, timeout=CALL_S).job.job_id
    assert wait_over(client, [job_id], OVER_S)[job_id].state == JOB_STATE_SUCCEEDED
    return job_id


def complete_too_late(channel: grpc.Channel, client: Client, job_id: str) -> None:
    """Say what a worker says that comes back after its job was over."""
    (encoder,) = [worker for worker in client.get_fleet().workers if worker.info.role == ROLE_ENCODER]
    room = RoomRef(room_id=ids.room_id(encoder.rank, 1), size_bytes=4096, xxh3_128=bytes(16), owner_rank=encoder.rank)
    room.owner_address = encoder.info.address
    after = Dispatch(job_id=job_id, role=ROLE_TRANSFORMER, room=room, sender_rank=encoder.rank)
    lease = Lease(ring=RING_REQUEST, ticket=1000, rank=encoder.rank)
    token = fleet_service_pb2.PhaseToken(job_id=job_id, role=ROLE_ENCODER, lease=lease)
    message = fleet_service_pb2.CompletePhaseRequest(next=after, token=token)
    with pytest.raises(grpc.RpcError) as caught:
        FleetServiceStub(channel).CompletePhase(message, timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.ABORTED


def kill_under(fleet: Fleet, client: Client) -> str:
    """A job whose transformer is killed in the middle, and that another one does."""
    job = client.submit(request(5))
    wait_until(lambda: client.get_job(job.job_id).step, OVER_S, "it is denoised")
    rank = client.get_job(job.job_id).transformer_rank
    (worker,) = [one for one in client.get_fleet().workers if one.rank == rank]
    fleet.kill(fleet.name_of(worker.info.process_id))
    assert wait_over(client, [job.job_id], OVER_S)[job.job_id].state == JOB_STATE_SUCCEEDED
    return job.job_id


def restart_under(fleet: Fleet, client: Client) -> str:
    """A job whose controller is killed in the middle, once its call's span has left it."""
    job = client.submit(request(6))
    wait_until(lambda: client.get_job(job.job_id).step, OVER_S, "it is denoised")
    fleet.kill(CONTROLLER)
    fleet.start(CONTROLLER)
    assert wait_over(client, [job.job_id], OVER_S)[job.job_id].state == JOB_STATE_SUCCEEDED
    return job.job_id


def break_until_quarantined(fleet: Fleet, client: Client) -> str:
    """Jobs that break the transformer that is left, which then checks itself; one of them is tried once more."""
    for _ in range(FAILURES_MAX):
        job = client.create_job(PROMPT, height=16, width=16, parameters={"fail": True})
        assert wait_over(client, [job.job_id], OVER_S)[job.job_id].state == JOB_STATE_FAILED
    wait_until(
        lambda: any("back from quarantine" in fleet.log(f"transformer-{number}") for number in range(2)),
        OVER_S,
        "a worker has checked itself",
    )
    again = client.retry_job(job.job_id)
    wait_over(client, [again.job_id], OVER_S)
    return job.job_id


def ours(seen: Seen) -> list[Received]:
    return [span for span in seen.spans if span.name != "of a caller"]


def test_every_span_that_comes_is_documented(seen: Seen) -> None:
    assert {span.name for span in ours(seen)} - DOCUMENTED.keys() == set()
    for span in ours(seen):
        row = DOCUMENTED[span.name]
        assert span.attributes.keys() - set(quoted(row["attributes"])) == set(), span.name
        assert set(span.event_names) | {name for _event, name in span.event_attributes} <= set(quoted(row["events"]))
        assert KINDS[span.kind] == row["kind"], span.name
        services = {"workers": "encoder, transformer, decoder"}.get(row["process"], row["process"]).split(", ")
        assert span.service.removeprefix("triptych-") in services, span.name


def test_everything_documented_comes(seen: Seen) -> None:
    assert DOCUMENTED.keys() - {span.name for span in ours(seen)} == set()
    for row in ROWS:
        spans = [span for span in ours(seen) if span.name in quoted(row["span"])]
        came = {key for span in spans for key in span.attributes}
        came |= {name for span in spans for pair in span.event_attributes for name in pair}
        missing = {*quoted(row["attributes"]), *quoted(row["events"])} - came
        assert missing == NOT_ALWAYS.get(row["span"], set()), row["span"]


NOT_ALWAYS: dict[str, set[str]] = {
    "`stage.run`": {"component.loaded", "component", "seconds"},  # fake stages have no models
    "`triptych.v1.EncoderService/Generate`": {"error.type"},
    "`triptych.v1.FleetService/StartDirectJob`": {"error.type"},
}
"""What these jobs don't show: it is the same code as for `CreateJob`."""


def test_names_are_those_of_the_conventions() -> None:
    modules = (gen_ai_attributes, messaging_attributes, rpc_attributes, error_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    used = {name for row in DOCUMENTED.values() for name in quoted(row["attributes"])}
    assert {name for name in used if not name.startswith("triptych.")} - known == set()
    assert [name for name in DOCUMENTED if name.startswith("/")] == []


def test_a_healthy_job_is_one_short_story(seen: Seen) -> None:
    spans = of_job(seen.spans, seen.succeeded)
    assert the_root(spans).name == "generate"
    assert [span for span in spans if span.status_code == ERROR] == []
    assert len(spans) <= SPANS_MAX
    by_id = {span.span_id: span for span in spans}

    def depth(span: Received) -> int:
        return 1 + (depth(by_id[span.parent_id]) if span.parent_id else 0)

    assert max(map(depth, spans)) == DEPTH_MAX
    assert {span.resource["service.namespace"] for span in spans} == {"triptych"}
    for span in spans:
        if "triptych.rank" in span.attributes and span.service != "triptych-controller":
            assert re.fullmatch(rf"{span.attributes['triptych.rank']}-\d+", span.resource["service.instance.id"])


SPANS_MAX = 22
DEPTH_MAX = 4


def test_a_job_of_a_client_without_traces_is_one_trace_too(seen: Seen) -> None:
    root = the_root(of_job(seen.spans, seen.foreign))
    assert root.name == "triptych.v1.GenerationService/CreateJob"


def test_a_killed_worker_leaves_a_failed_attempt_and_no_orphan(seen: Seen) -> None:
    spans = of_job(seen.spans, seen.killed)
    the_root(spans)
    first, second = sorted((s for s in spans if s.name == "attempt transformer"), key=lambda span: span.start_ns)
    assert (first.status_code, first.attributes["triptych.kind"]) == (ERROR, "worker_died")
    assert (second.status_code, second.attributes["triptych.attempt"]) == (0, 1)
    (claim,) = [s for s in spans if s.name == "claim phase1" and first.span_id in s.links]
    assert claim.attributes["triptych.attempt"] == 1
    rank = second.attributes["triptych.rank"]
    (wait,) = [s for s in spans if s.name == "queue.wait" and s.attributes["triptych.rank"] == rank]
    # It begins where the first attempt ended, on one machine's clock.
    assert abs(wait.start_ns - first.end_ns) < (first.end_ns - first.start_ns) / 2


def test_a_trace_outlives_its_controller(seen: Seen) -> None:
    spans = of_job(seen.spans, seen.restarted)
    the_root(spans)
    (attempt,) = [span for span in spans if span.name == "attempt transformer"]
    (stage,) = [span for span in spans if span.name == "stage.run" and span.parent_id == attempt.span_id]
    assert attempt.start_ns <= stage.start_ns
    assert stage.end_ns <= attempt.end_ns
    accept = next(span for span in spans if span.name.endswith("CreateJob"))
    assert attempt.resource["service.instance.id"] != accept.resource["service.instance.id"]


def test_what_is_refused_or_gives_up_is_marked(seen: Seen) -> None:
    (refused,) = [s for s in of_job(seen.spans, seen.refused) if s.name == "attempt encoder"]
    assert (refused.status_code, refused.attributes["triptych.kind"]) == (ERROR, "invalid_request")
    failed = [s for s in of_job(seen.spans, seen.dead) if s.name == "attempt transformer"]
    assert {span.status_code for span in failed} == {ERROR}
    assert [span.attributes.get("triptych.dead_letter") for span in failed].count(True) == 1
