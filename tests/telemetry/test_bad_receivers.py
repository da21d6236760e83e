"""Receivers that are gone, deaf, slow or refuse everything: no job waits for them, and leaving soon gives up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from tests.failures.loads import request, wait_over
from tests.fleet.processes import STOP_TIMEOUT_S, Fleet
from triptych import telemetry
from triptych.telemetry.exporters import FLUSH_TIMEOUT_S
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED

JOBS = 5
JOB_S_MAX = 10.0
"""Jobs of 0.1 s take a small part of it. One export that is waited for takes so long alone (the SDK's timeout)."""
LEAVE_S_MAX = 2 * FLUSH_TIMEOUT_S + 10.0
"""What docs/telemetry.md promises, traces and metrics together, and what an end takes on a busy machine."""


@contextlib.contextmanager
def stopped() -> Iterator[str]:
    """Bound, not listening: every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """Connections are made, and nothing is ever said on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


class Answering(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes every export, and answers it as it is told to."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        self._answer = answer
        self.called = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        self.called.set()
        self._answer(context)


@contextlib.contextmanager
def answering(answer: Callable[[Any], None]) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    servicer = Answering(answer)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
        assert servicer.called.is_set(), "nothing was exported at all"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def slow() -> Iterator[str]:
    """Answers nothing until the test is over."""
    over = threading.Event()
    with answering(lambda context: context.abort(grpc.StatusCode.CANCELLED, str(over.wait()))) as endpoint:
        try:
            yield endpoint
        finally:
            over.set()


def refusing() -> contextlib.AbstractContextManager[str]:
    """Refuses everything for now, which the SDK tries again."""
    return answering(lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "too busy"))


KINDS: Mapping[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
    "stopped": stopped,
    "deaf": deaf,
    "slow": slow,
    "refusing": refusing,
}


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_takes_a_bounded_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with KINDS[kind]() as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        with telemetry.setup("triptych-client"):
            started_s = time.monotonic()
            for _ in range(5000):  # more than the SDK's queue takes
                with telemetry.span("stage.run"):
                    pass
            assert time.monotonic() - started_s < JOB_S_MAX
            started_s = time.monotonic()
        assert time.monotonic() - started_s < LEAVE_S_MAX


class Unheard(Fleet):
    """Each process exports to a receiver of another kind."""

    def __init__(self, folder: Path, endpoints: Mapping[str, str]) -> None:
        super().__init__(folder, "", worker_flags=("--fake-stage-seconds", "0.1", "--mover", "local"))
        self._endpoints = endpoints

    def spawn(self, name: str, env: Mapping[str, str] = {}) -> None:
        own = {"OTEL_EXPORTER_OTLP_ENDPOINT": self._endpoints[name.partition("-")[0]], "OTEL_BSP_SCHEDULE_DELAY": "10"}
        super().spawn(name, {**own, "OTEL_METRIC_EXPORT_INTERVAL": "100", **env})


def test_no_job_and_no_end_waits_for_a_receiver(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        kinds = dict(zip(("controller", "encoder", "transformer", "decoder"), KINDS.values(), strict=True))
        endpoints = {name: stack.enter_context(kind()) for name, kind in kinds.items()}
        fleet = stack.enter_context(Unheard(tmp_path, endpoints))
        with fleet.client() as client:
            for seed in range(JOBS):
                started_s = time.monotonic()
                job_id = client.submit(request(seed)).job_id
                assert wait_over(client, [job_id], STOP_TIMEOUT_S)[job_id].state == JOB_STATE_SUCCEEDED
                assert time.monotonic() - started_s < JOB_S_MAX
        for names in (fleet.workers, ["controller"]):
            started_s = time.monotonic()
            for name in names:
                fleet.processes[name].terminate()
            for name in names:
                assert fleet.processes[name].wait(STOP_TIMEOUT_S) == 0, fleet.log(name)
            assert time.monotonic() - started_s < LEAVE_S_MAX
