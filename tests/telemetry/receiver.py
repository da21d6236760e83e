"""A standard OTLP/gRPC receiver for tests, and what a connected trace is.

    with Receiver() as receiver:
        ... run processes with OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint ...
        spans = receiver.wait_for(lambda spans: {s.service for s in spans} >= SERVICES, timeout_s=20)
    root = the_root(of_job(spans, job_id))

Set OTEL_BSP_SCHEDULE_DELAY=100 (milliseconds) in those processes, or wait for the SDK's batches of five seconds.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class Received:
    """One span, as it came over the wire."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status_code: int
    status_message: str
    attributes: dict[str, Any]
    event_names: tuple[str, ...] = ()
    event_attributes: frozenset[tuple[str, str]] = frozenset()
    """Pairs of an event's name and an attribute of it."""
    links: tuple[str, ...] = ()
    """Ids of the spans that it links to."""
    resource: dict[str, Any] = field(default_factory=dict)
    scope: tuple[str, str] = ("", "")
    """Name and version of the instrumentation scope."""


@dataclass
class _Store:
    spans: list[Received] = field(default_factory=list)
    metrics: dict[tuple[str, str], Any] = field(default_factory=dict)
    """As they came last, by service and name."""
    exemplar_traces: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Ids of the traces that a histogram's points ever named, by service and name: each example is sent once."""
    metric_instances: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)


class Receiver:
    """Receives until the block ends. `endpoint` is the value for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __enter__(self) -> Receiver:
        self._store = _Store()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self._store), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self._store), self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    @property
    def spans(self) -> list[Received]:
        """All spans so far."""
        with self._store.changed:
            return list(self._store.spans)

    @property
    def metric_names(self) -> set[str]:
        """Names of all metrics so far."""
        with self._store.changed:
            return {name for _service, name in self._store.metrics}

    def metric_labels(self) -> dict[tuple[str, str], set[str]]:
        """The keys of all metrics' attributes, by service and name."""
        with self._store.changed:
            return {
                key: {pair.key for point in _points(metric) for pair in point.attributes}
                for key, metric in self._store.metrics.items()
            }

    def exemplar_traces(self, service: str, name: str) -> set[str]:
        """Ids of the traces that a histogram's points name as examples."""
        with self._store.changed:
            return set(self._store.exemplar_traces[service, name])

    @property
    def metric_instances(self) -> set[str]:
        """Every service.instance.id that metrics came with so far."""
        with self._store.changed:
            return set(self._store.metric_instances)

    def wait_for(self, enough: Callable[[list[Received]], bool], *, timeout_s: float) -> list[Received]:
        """The spans, once `enough` accepts them; an AssertionError that lists them after `timeout_s`."""
        with self._store.changed:
            if not self._store.changed.wait_for(lambda: enough(self._store.spans), timeout_s):
                names = [f"{span.service}: {span.name}" for span in self._store.spans]
                raise AssertionError(f"after {timeout_s} s only {len(names)} spans came: {names}")
            return list(self._store.spans)


def of_job(spans: Sequence[Received], job_id: str) -> list[Received]:
    """All spans of all traces that mention the job."""
    traces = {span.trace_id for span in spans if span.attributes.get("triptych.job_id") == job_id}
    return [span for span in spans if span.trace_id in traces]


def the_root(spans: Sequence[Received]) -> Received:
    """The root of one connected trace; an AssertionError that says what is wrong otherwise."""
    traces = {span.trace_id for span in spans}
    assert len(traces) == 1, f"{len(traces)} traces instead of one: {sorted(traces)}"
    known = {span.span_id for span in spans}
    assert len(known) == len(spans), "a span came twice"
    roots = [span for span in spans if not span.parent_id]
    assert len(roots) == 1, f"{len(roots)} roots instead of one: {[(root.service, root.name) for root in roots]}"
    lost = [(span.service, span.name) for span in spans if span.parent_id and span.parent_id not in known]
    assert not lost, f"spans without their parent: {lost}"
    return roots[0]


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, store: _Store) -> None:
        self._store = store

    def Export(self, request: Any, context: Any) -> Any:
        received = [
            _received(_attributes(resource.resource.attributes), (scope.scope.name, scope.scope.version), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._store.changed:
            self._store.spans += received
            self._store.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, store: _Store) -> None:
        self._store = store

    def Export(self, request: Any, context: Any) -> Any:
        with self._store.changed:
            for resource in request.resource_metrics:
                said = _attributes(resource.resource.attributes)
                self._store.metric_instances.add(said.get("service.instance.id", ""))
                for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                    key = said.get("service.name", ""), metric.name
                    self._store.metrics[key] = metric
                    if metric.HasField("histogram"):
                        found = (exemplar for point in _points(metric) for exemplar in point.exemplars)
                        self._store.exemplar_traces[key] |= {exemplar.trace_id.hex() for exemplar in found}
            self._store.changed.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _points(metric: Any) -> Any:
    return getattr(metric, metric.WhichOneof("data")).data_points


def _received(resource: dict[str, Any], scope: tuple[str, str], span: Any) -> Received:
    return Received(
        service=resource.get("service.name", ""),
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status_code=span.status.code,
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        event_names=tuple(event.name for event in span.events),
        event_attributes=frozenset((event.name, pair.key) for event in span.events for pair in event.attributes),
        links=tuple(link.span_id.hex() for link in span.links),
        resource=resource,
        scope=scope,
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
