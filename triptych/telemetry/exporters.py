"""Where spans and metrics go: to a collector, a file, a Prometheus page, or nowhere.

A collector is named by the standard `OTEL_*` variables, which the OpenTelemetry SDK reads itself (endpoint, headers,
TLS, batching, sampling). Without one, and without a trace file or a metrics port, the SDK isn't even imported.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from triptych import environment
from triptych.errors import InvalidRequest, MissingExtra
from triptych.telemetry import resource as resources
from triptych.telemetry import tracing
from triptych.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from prometheus_client.core import InfoMetricFamily

FLUSH_TIMEOUT_S = 3.0
"""How long a collector that doesn't answer may hold up leaving, per signal: far below any drain timeout."""
SPAN_EVENTS_MAX = 1024
"""Events kept per span: a request may have 1000 steps, and the SDK's default of 128 would drop the first ones."""


@contextmanager
def setup(
    service_name: str,
    trace_file: str = "",
    metrics_port: int = 0,
) -> Iterator[Metrics]:
    """Turn telemetry on for this process while the block runs; leaving flushes, for a bounded time.

    `trace_file` gets each span as OTLP JSON when it ends; `metrics_port` serves Prometheus metrics, 0 doesn't. Raises
    InvalidRequest when the file can't be opened, the port is taken, or the environment asks for a protocol other than
    gRPC, and MissingExtra without the Prometheus exporter.
    """
    signals = environment.otlp_signals()
    with ExitStack() as stack:
        metrics = Metrics()
        if signals or trace_file or metrics_port:
            resource = resources.of_process(service_name)
            stack.callback(resources.forget)
            if "metrics" in signals or metrics_port:
                metrics = stack.enter_context(_metering(resource, metrics_port, collector="metrics" in signals))
            if "traces" in signals or trace_file:
                stack.enter_context(_tracing(resource, trace_file, collector="traces" in signals))
        yield metrics


@contextmanager
def _tracing(resource: Resource, trace_file: str, *, collector: bool) -> Iterator[None]:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return tracing.next_span_id() or super().generate_span_id()

    limits = SpanLimits(max_events=SPAN_EVENTS_MAX)
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False, id_generator=Ids())
    if trace_file:
        from triptych.telemetry.trace_file import TraceFileExporter

        # Written when it ends, not in batches: a span is in the file before the job's next message is sent.
        provider.add_span_processor(SimpleSpanProcessor(TraceFileExporter(trace_file)))
    if collector:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(channel_options=environment.otlp_options("traces"))
        provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        with tracing.activate(provider):
            yield
    finally:
        _bounded(provider.shutdown)


@contextmanager
def _metering(resource: Resource, port: int, *, collector: bool) -> Iterator[Metrics]:
    from opentelemetry.sdk.metrics import MeterProvider

    with ExitStack() as stack:
        readers: list[MetricReader] = []
        if port:
            readers.append(stack.enter_context(_prometheus_page(port, resource)))
        if collector:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

            exporter = OTLPMetricExporter(channel_options=environment.otlp_options("metrics"))
            readers.append(PeriodicExportingMetricReader(exporter))
        provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        try:
            yield Metrics(provider.get_meter(resources.SCOPE, resources.own_version()))
        finally:
            _bounded(provider.shutdown)


class _Target:
    """A page's `target_info`: the resource as it is now. The exporter's own stays as it was first read, and a worker
    learns its rank later."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def collect(self) -> Iterator[InfoMetricFamily]:
        from prometheus_client.core import InfoMetricFamily

        attributes = {re.sub(r"\W", "_", key): str(value) for key, value in self._resource.attributes.items()}
        yield InfoMetricFamily("target", "The process that this page is of", value=attributes)


@contextmanager
def _prometheus_page(port: int, resource: Resource) -> Iterator[MetricReader]:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise MissingExtra("opentelemetry-exporter-prometheus", "serve", "metrics_port") from error

    registry = CollectorRegistry()
    registry.register(_Target(resource))
    reader = PrometheusMetricReader(disable_target_info=True, registry=registry)
    try:
        server, thread = start_http_server(port, environment.metrics_host(), registry)
    except (OSError, OverflowError) as error:
        raise InvalidRequest("metrics_port", port, "a free port of this machine, or 0 for no metrics page") from error
    try:
        yield reader
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bounded(shut_down: Callable[[], object]) -> None:
    # The SDK's own bounds are 10 s per export and 30 s per shutdown, too long for Ctrl-C.
    thread = threading.Thread(target=shut_down, name="telemetry-flush", daemon=True)
    thread.start()
    thread.join(FLUSH_TIMEOUT_S)
