"""One trace a job, over five processes, at a standard OTLP receiver and in a file; and no prompt anywhere in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import worker_of
from tests.fleet.processes import Fleet, wait_until
from tests.telemetry.receiver import Received, Receiver, of_job, the_root
from triptych import rpc, telemetry
from triptych.v1.encoder_service_pb2 import GenerateRequest
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_SUCCEEDED
from triptych_client.request import build_request

SERVICES = {f"triptych-{name}" for name in ("client", "controller", "encoder", "transformer", "decoder")}
PROMPT, NEGATIVE = "a zebracrossing in the rain", "moonlight"
SECRETS = ("zebracrossing", "moonlight")
STEPS = 7
SPANS_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
SPANS_MAX = 25
"""Of a healthy job."""
SERVER, PRODUCER, CONSUMER = 2, 4, 5
"""SpanKind of opentelemetry.proto.trace.v1."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


@pytest.fixture(scope="module")
def traced(
    receiver: Receiver, tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]
) -> Iterator[Fleet]:
    """A fleet whose processes export to the receiver and append to one file."""
    folder = tmp_path_factory.mktemp("traced")
    flags = ("--trace-file", str(folder / "trace.jsonl"))
    env = exporting(receiver)
    model = model_folder("wan_t2v")
    with Fleet(folder / "fleet", model, worker_flags=flags, controller_flags=flags, env=env) as fleet:
        yield fleet


def exporting(receiver: Receiver) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def trace_file(fleet: Fleet) -> Path:
    return fleet.folder.parent / "trace.jsonl"


def triptych(receiver: Receiver, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triptych_client.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **exporting(receiver), "COLUMNS": "120"},
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def generate(receiver: Receiver, fleet: Fleet, path: Path) -> str:
    """A job made by the command, in a process of its own. Returns the job's id."""
    with fleet.client() as client:
        before = {job.job_id for job in client.list_jobs()}
        size = ("--height", "32", "--width", "64", "--num-frames", "5", "--num-inference-steps", str(STEPS))
        where = ("--endpoint", fleet.endpoint, "--trace-file", str(trace_file(fleet)))
        done = triptych(receiver, "generate", PROMPT, "-o", str(path), "--negative-prompt", NEGATIVE, *size, *where)
        assert done.returncode == 0, done.stderr
        assert [word for word in SECRETS if word in done.stderr + done.stdout] == []
        (job_id,) = {job.job_id for job in client.list_jobs()} - before
    return job_id


def whole_trace(receiver: Receiver, job_id: str, services: set[str]) -> list[Received]:
    """The job's spans, once each of the services has ended its part and none still lacks its parent."""

    def is_whole(spans: list[Received]) -> bool:
        mine = of_job(spans, job_id)
        known = {span.span_id for span in mine}
        claims = sum(span.kind == CONSUMER for span in mine)
        return (
            {span.service for span in mine} >= services
            and claims == 3
            and sum(span.name.startswith("attempt ") for span in mine) == 3
            and all(not span.parent_id or span.parent_id in known for span in mine)
        )

    return of_job(receiver.wait_for(is_whole, timeout_s=SPANS_TIMEOUT_S), job_id)


@pytest.fixture(scope="module")
def job_id(receiver: Receiver, traced: Fleet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return generate(receiver, traced, tmp_path_factory.mktemp("out") / "out.mp4")


def test_a_job_is_one_connected_trace(receiver: Receiver, traced: Fleet, job_id: str) -> None:
    spans = whole_trace(receiver, job_id, SERVICES)
    root = the_root(spans)
    assert (root.service, root.name) == ("triptych-client", "generate")
    assert root.attributes["triptych.job_id"] == job_id
    assert {span.service for span in spans} == SERVICES
    with traced.client() as client:
        assert client.get_job(job_id).trace_id == root.trace_id
    assert len(spans) <= SPANS_MAX
    failed = [(span.service, span.name, span.status_message) for span in spans if span.status_code == 2]
    assert failed == []


def test_each_stage_says_what_it_did(receiver: Receiver, traced: Fleet, job_id: str) -> None:
    spans = whole_trace(receiver, job_id, SERVICES)
    names = Counter((span.service.removeprefix("triptych-"), span.name) for span in spans)
    for role, own in {
        "encoder": ("room.store", "publish phase1"),
        "transformer": ("room.fetch", "room.store", "publish phase2"),
        "decoder": ("room.fetch", "result.store"),
    }.items():
        for name in ("queue.wait", "stage.run", *own):
            assert names[role, name] == 1, (role, name)
    (denoise,) = [span for span in spans if (span.service, span.name) == ("triptych-transformer", "stage.run")]
    assert denoise.event_names == ("step",) * STEPS
    movers = {span.attributes["triptych.mover"] for span in spans if span.name == "room.fetch"}
    assert movers == {"local"}


def test_the_rings_are_producers_and_consumers(receiver: Receiver, traced: Fleet, job_id: str) -> None:
    spans = whole_trace(receiver, job_id, SERVICES)
    by_id = {span.span_id: span for span in spans}
    produced = [span for span in spans if span.kind == PRODUCER]
    consumed = [span for span in spans if span.kind == CONSUMER]
    assert {span.name for span in produced} >= {"publish phase1", "publish phase2"}
    assert {span.name for span in consumed} == {"claim request", "claim phase1", "claim phase2"}
    for span in produced + consumed:
        assert span.attributes["triptych.job_id"] == job_id
    for span in consumed:
        if span.name != "claim request":
            (before,) = span.links
            (publish,) = [one for one in produced if one.name == span.name.replace("claim", "publish")]
            assert by_id[publish.parent_id].span_id == before


def test_a_direct_job_is_one_trace(receiver: Receiver, traced: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in exporting(receiver).items():
        monkeypatch.setenv(name, value)
    wait_until(lambda: worker_of(traced, "encoder-0").status.progress.job_id == "", 60, "the encoder is idle")
    request = build_request(PROMPT, height=32, width=64, num_frames=5, num_inference_steps=2, seed=1)

    async def call() -> str:
        async with rpc.open_channel(traced.addresses["encoder-0"]) as channel:
            response = await EncoderServiceStub(channel).Generate(GenerateRequest(request=request), timeout=60)
            return str(response.job.job_id)

    with telemetry.setup("triptych-client"), telemetry.span("of a caller"):
        job_id = asyncio.run(call())
    spans = whole_trace(receiver, job_id, SERVICES)
    assert the_root(spans).service == "triptych-client"
    encoder = [span.name for span in spans if span.service == "triptych-encoder"]
    assert encoder.count("stage.run") == 1
    called = {span.name for span in spans if span.kind == SERVER}
    assert called == {"triptych.v1.FleetService/StartDirectJob", "triptych.v1.EncoderService/Generate"}


def test_the_file_is_drawn_as_a_waterfall(receiver: Receiver, traced: Fleet, job_id: str) -> None:
    whole_trace(receiver, job_id, SERVICES)
    drawn = triptych(receiver, "trace", job_id, "--trace-file", str(trace_file(traced)))
    assert drawn.returncode == 0, drawn.stderr
    for word in ("triptych-client", "generate", "queue.wait", "stage.run", "room.fetch", "result.store"):
        assert word in drawn.stdout
    assert len({line.split("\t")[0] for line in drawn.stdout.splitlines()}) == 5
    unknown = triptych(receiver, "trace", "job-of-nobody", "--trace-file", str(trace_file(traced)))
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("triptych: no job and no trace 'job-of-nobody'")


def test_no_prompt_is_in_a_span_a_log_or_the_file(receiver: Receiver, traced: Fleet, job_id: str) -> None:
    """Nor when the job fails: here a guider refuses to stop before it starts."""
    with traced.client() as client:
        window = {"guider.start": 0.9, "guider.stop": 0.1}
        job = client.create_job(PROMPT, negative_prompt=NEGATIVE, height=32, width=64, num_frames=5, parameters=window)
        for update in client.watch_job(job.job_id, timeout_s=120):
            job = update.job
        assert job.state == JOB_STATE_FAILED
        assert client.get_job(job_id).state == JOB_STATE_SUCCEEDED
    spans = whole_trace(receiver, job_id, SERVICES)
    texts = {name: traced.log(name) for name in traced.processes}
    texts["spans"] = repr(spans + receiver.spans)
    texts["file"] = trace_file(traced).read_text()
    assert len(texts["file"]) > 1000
    assert [(where, word) for where, text in texts.items() for word in SECRETS if word in text] == []
