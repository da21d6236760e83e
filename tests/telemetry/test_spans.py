"""Spans, where they go, and that nothing happens where nothing was asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.telemetry.receiver import Receiver, of_job, the_root
from triptych import telemetry
from triptych.environment import otlp_signals
from triptych.errors import InvalidRequest, LeaseLost
from triptych.telemetry.exporters import FLUSH_TIMEOUT_S

ROOT = Path(__file__).parents[2]
HEX = set("0123456789abcdef")

HOP = """
import sys
from triptych import telemetry

service, traceparent, trace_file = sys.argv[1:]
with telemetry.setup(service, trace_file=trace_file):
    parent = telemetry.extract(traceparent)
    with telemetry.span("claim", kind="consumer", parent=parent, job_id="job-7"):
        for _ in range(50):
            with telemetry.span("stage.run"):
                pass
        with telemetry.span("publish", kind="producer"):
            print(telemetry.inject(), end="")
"""

QUIET = """
import sys, threading
from triptych import rpc, telemetry
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
with telemetry.setup("quiet") as measured:
    with telemetry.span("stage.run", job_id="job-7") as span:
        span.add_event("step")
        assert telemetry.inject() == telemetry.trace_id() == ""
    worker = telemetry.WorkerMetrics(ROLE_ENCODER, measured.meter)
    worker.stage_ran(1.0)
    worker.watch_arena(lambda: 1, 2)
    telemetry.ControllerMetrics(measured.meter).watch_rings(lambda: [])
    measured.watch_process()
    assert not telemetry.client_interceptors() and not telemetry.server_interceptors()
assert threading.enumerate() == [threading.main_thread()]
loaded = [m for m in sys.modules if m.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.inst"))]
assert not loaded, loaded
"""


def run_python(code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
    )


def test_a_trace_goes_through_processes_to_collector_and_file(receiver: Receiver, tmp_path: Path) -> None:
    trace_file = str(tmp_path / "trace.jsonl")
    traceparent = ""
    for service in ("encoder", "transformer", "decoder"):
        done = run_python(HOP, service, traceparent, trace_file, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=receiver.endpoint)
        assert (done.returncode, done.stderr) == (0, "")
        traceparent = done.stdout
    spans = of_job(receiver.spans, "job-7")
    assert {span.service for span in spans} == {"encoder", "transformer", "decoder"}
    assert the_root(spans).service == "encoder"
    in_file = [
        (scope_span["traceId"], scope_span["spanId"], scope_span.get("parentSpanId", ""))
        for line in Path(trace_file).read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for scope_span in scope["spans"]
    ]
    assert sorted(in_file) == sorted((span.trace_id, span.span_id, span.parent_id) for span in spans)


def test_processes_append_to_one_file_at_once(tmp_path: Path) -> None:
    trace_file = tmp_path / "trace.jsonl"
    workers = [threading.Thread(target=run_python, args=(HOP, f"worker-{i}", "", str(trace_file))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    requests = [json.loads(line) for line in trace_file.read_text().splitlines()]
    assert len(requests) == 3 * 52
    for request in requests:
        (resource,) = request["resourceSpans"]
        span = resource["scopeSpans"][0]["spans"][0]
        assert len(span["traceId"]) == 32
        assert len(span["spanId"]) == 16
        assert set(span["traceId"] + span["spanId"]) <= HEX
        assert isinstance(span["kind"], int)
        assert isinstance(span["startTimeUnixNano"], str)


def test_nothing_happens_where_nothing_is_asked_for() -> None:
    done = run_python(QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_is_light() -> None:
    code = "import sys, triptych.telemetry; print(*sys.modules)"
    loaded = set(run_python(code).stdout.split())
    assert "triptych.telemetry" in loaded
    heavy = {"torch", "numpy", "opentelemetry.sdk.trace", "opentelemetry.sdk.metrics", "prometheus_client"}
    assert not loaded & heavy


def test_errors_mark_a_span_without_telling_prompts(exporting: Receiver) -> None:
    with telemetry.setup("worker"):
        with pytest.raises(LeaseLost), telemetry.span("ours", attempt=None):
            raise LeaseLost("ticket 3 was reaped")
        with pytest.raises(KeyError), telemetry.span("not ours"):
            raise KeyError("a secret prompt")
    ours, other = exporting.spans
    assert (ours.status_code, ours.status_message, ours.attributes) == (2, "LeaseLost: ticket 3 was reaped", {})
    assert (other.status_code, other.status_message, other.event_names) == (2, "KeyError", ())


def test_a_span_holds_every_step(exporting: Receiver) -> None:
    with telemetry.setup("worker"), telemetry.span("stage.run") as run:
        for step in range(1000):
            run.add_event("step", {"step": step, "step_count": 1000})
    (stage,) = exporting.spans
    assert stage.event_names == ("step",) * 1000


def test_an_unreadable_traceparent_makes_a_root() -> None:
    for traceparent in ("", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        assert telemetry.trace_id(telemetry.extract(traceparent)) == ""


def test_a_collector_that_is_gone_does_not_hold_up_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound, not listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with telemetry.setup("worker"):
            with telemetry.span("lost"):
                pass
            started_s = time.monotonic()
        assert time.monotonic() - started_s < FLUSH_TIMEOUT_S + 10


@pytest.mark.parametrize("path", ["missing/trace.jsonl", "."])
def test_a_trace_file_that_cannot_be_opened_is_named(tmp_path: Path, path: str) -> None:
    message = r"trace_file is .* accepted: a file that can be written"
    with pytest.raises(InvalidRequest, match=message), telemetry.setup("worker", trace_file=str(tmp_path / path)):
        pass
    assert telemetry.inject() == ""


def test_a_full_disk_loses_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with telemetry.setup("worker", trace_file="/dev/full"), telemetry.span("lost"):
        pass
    assert "No space left" in caplog.text


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environ", "signals"),
    [
        ({}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, set()),
        (ENDPOINT, {"traces", "metrics"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, {"traces"}),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, {"traces"}),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, set()),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"traces", "metrics"}),
    ],
)
def test_the_standard_variables_say_what_is_exported(environ: dict[str, str], signals: set[str]) -> None:
    assert otlp_signals(environ) == signals


def test_another_protocol_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'; accepted: 'grpc'"):
        otlp_signals({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
