"""Spans, the context that a Dispatch carries, and the gRPC interceptors.

A call makes a span when it begins a job, or when it is part of a job and its caller is already in a trace. So each
job has one root, and neither polling nor a long stream becomes a span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triptych.errors import public_text
from triptych.security.rules import rules_of
from triptych.telemetry.resource import SCOPE, own_version
from triptych.v1.rules_pb2 import SPAN_PART, SPAN_ROOT

ATTRIBUTE_PREFIX = "triptych."
"""Namespace of span attributes; `job_id` becomes `triptych.job_id`."""

_PROPAGATOR = TraceContextTextMapPropagator()

_active: trace.TracerProvider | None = None


@contextmanager
def activate(provider: trace.TracerProvider) -> Iterator[None]:
    """Send the spans of this process to `provider` until the block ends. For `setup`."""
    global _active
    before = _active
    _active = provider
    try:
        yield
    finally:
        _active = before


def _is_recording() -> bool:
    """Whether spans are recorded: by `setup`, or by a provider that the surrounding application has installed."""
    return _active is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _tracer() -> trace.Tracer:
    return trace.get_tracer(SCOPE, own_version() if _is_recording() else "", tracer_provider=_active)


@contextmanager
def span(
    name: str,
    *,
    kind: Literal["internal", "client", "producer", "consumer"] = "internal",
    parent: Context | None = None,
    start_s: float | None = None,
    **attributes: str | int | float | bool | None,
) -> Iterator[trace.Span]:
    """Run a block as a span, the child of `parent` or else of the current span.

    `start_s` (Unix seconds) dates it back, as `queue.wait` needs. Attributes are put under `triptych.`; those that
    are None are left out. An exception marks the span as failed, with its `errors.public_text`, and is raised on.
    """
    with _tracer().start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind[kind.upper()],
        attributes={ATTRIBUTE_PREFIX + key: value for key, value in attributes.items() if value is not None},
        start_time=None if start_s is None else round(start_s * 1e9),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(trace.StatusCode.ERROR, public_text(error))
            raise


def mark_failed(text: str) -> None:
    """Mark the current span as failed, in place of the status' details, which gRPC's instrumentation puts there."""
    trace.get_current_span().set_status(trace.StatusCode.ERROR, text)


def inject() -> str:
    """The W3C traceparent of the current span, for a Dispatch or the journal; empty where there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def extract(traceparent: str) -> Context:
    """The context that `inject` wrote; an empty one, which makes a span a root, for anything that can't be read."""
    return _PROPAGATOR.extract({"traceparent": traceparent})


def trace_id(context: Context | None = None) -> str:
    """The trace id, 32 hexadecimal digits, of `context` or else of the current span; empty where there is none."""
    found = trace.get_current_span(context).get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for `grpc.aio` channels; none where spans aren't recorded."""
    if not _is_recording():
        return []
    from opentelemetry.instrumentation.grpc import aio_client_interceptors

    # Requests never stream in a job's calls, so the stream interceptors would only slow the heartbeat down.
    wanted = (grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.UnaryStreamClientInterceptor)
    made = aio_client_interceptors(tracer_provider=_active, filter_=_client_filter, response_hook=_forget_details)
    return [interceptor for interceptor in made if isinstance(interceptor, wanted)]


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Interceptors for `grpc.aio` servers, to be put first; none where spans aren't recorded."""
    if not _is_recording():
        return []
    from opentelemetry.instrumentation.grpc import aio_server_interceptor

    return [aio_server_interceptor(tracer_provider=_active, filter_=_server_filter)]


def _forget_details(span: trace.Span, details: object) -> None:
    """Called with a failed call's details once they are the span's (and with answers): they may quote the caller."""
    if isinstance(details, str) and details:
        span.set_status(trace.StatusCode.ERROR, "")


def _client_filter(call: Any) -> bool:
    method = call.method.decode() if isinstance(call.method, bytes) else call.method
    return _makes_span(method, trace_id() != "")


def _server_filter(call: Any) -> bool:
    return _makes_span(call.method, any(key == "traceparent" for key, _value in call.invocation_metadata or ()))


def _makes_span(method: str, is_in_trace: bool) -> bool:
    span = rules_of(method).span
    return span == SPAN_ROOT or (span == SPAN_PART and is_in_trace)
