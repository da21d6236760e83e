"""Spans, and the contexts that a Dispatch and the journal carry.

A context is a W3C traceparent, a text. A span may be recorded long after it began, by another process than the one
that knew of its beginning: `reserve` makes the context of a span to come, in which others can already put theirs, and
`record` records it when its end is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triptych.errors import public_text
from triptych.telemetry.resource import SCOPE, own_version

ATTRIBUTE_PREFIX = "triptych."
"""Namespace of span attributes; `job_id` becomes `triptych.job_id`."""
Value = str | int | float | bool
Kind = Literal["internal", "server", "client", "producer", "consumer"]

_PROPAGATOR = TraceContextTextMapPropagator()

_active: trace.TracerProvider | None = None
_next_span_id: ContextVar[int] = ContextVar("triptych_next_span_id", default=0)


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


def is_recording() -> bool:
    """Whether spans are recorded: by `setup`, or by a provider that the surrounding application has installed."""
    return _active is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _tracer() -> trace.Tracer:
    return trace.get_tracer(SCOPE, own_version() if is_recording() else "", tracer_provider=_active)


@contextmanager
def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: Context | None = None,
    also: Mapping[str, Value] | None = None,
    **attributes: Value | None,
) -> Iterator[trace.Span]:
    """Run a block as a span, the child of `parent` or else of the current span.

    Attributes are put under `triptych.`; those that are None are left out. `also` are attributes with names of the
    semantic conventions. An exception marks the span as failed, with its `errors.public_text`, and is raised on.
    """
    with _tracer().start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind[kind.upper()],
        attributes=_named(attributes, also),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(trace.StatusCode.ERROR, public_text(error))
            raise


def event(name: str, **attributes: str | int | float) -> None:
    """Note on the current span that something happened now; nothing where there is none."""
    trace.get_current_span().add_event(name, attributes)


def reserve(parent: str) -> str:
    """The traceparent of a span to come, in the trace of the traceparent `parent`; empty where there will be none."""
    above = trace.get_current_span(extract(parent)).get_span_context()
    if not above.is_valid or not is_recording():
        return ""
    span_id = random.getrandbits(64) or 1
    return f"00-{trace.format_trace_id(above.trace_id)}-{trace.format_span_id(span_id)}-{above.trace_flags:02x}"


def record(
    name: str,
    *,
    parent: str,
    start_ns: int,
    end_ns: int,
    reserved: str = "",
    error: str = "",
    **attributes: Value | None,
) -> None:
    """Record a span that is over, the child of the traceparent `parent`; none without a parent. Times are Unix
    nanoseconds. `reserved` is its own traceparent, if it has one; `error` says what went wrong, if anything did.
    """
    if not trace_id(extract(parent)):
        return
    token = _next_span_id.set(trace.get_current_span(extract(reserved)).get_span_context().span_id)
    try:
        made = _tracer().start_span(name, extract(parent), attributes=_named(attributes), start_time=start_ns)
    finally:
        _next_span_id.reset(token)
    if error:
        made.set_status(trace.StatusCode.ERROR, error)
    made.end(max(start_ns, end_ns))


def next_span_id() -> int:
    """The id that `record` wants its span to have; 0 for any. For the provider that `setup` makes."""
    return _next_span_id.get()


@contextmanager
def within(traceparent: str) -> Iterator[None]:
    """Run a block inside a span of another process; where there is none, inside the current one."""
    if not trace_id(extract(traceparent)):
        yield
        return
    token = contexts.attach(extract(traceparent))
    try:
        yield
    finally:
        contexts.detach(token)


def annotate(also: Mapping[str, Value] | None = None, **attributes: Value | None) -> None:
    """Give the current span more attributes, named as those of `span` are."""
    trace.get_current_span().set_attributes(_named(attributes, also))


def link(span: trace.Span, traceparent: str) -> None:
    """Point from a span to another one, which came before it; to none where the text can't be read."""
    before = trace.get_current_span(extract(traceparent)).get_span_context()
    if before.is_valid:
        span.add_link(before)


def _named(attributes: Mapping[str, Value | None], also: Mapping[str, Value] | None = None) -> dict[str, Value]:
    own = {ATTRIBUTE_PREFIX + key: value for key, value in attributes.items() if value is not None}
    return {**own, **(also or {})}


def carrier() -> dict[str, str]:
    """The current context as the W3C's headers; empty where there is none."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def inject() -> str:
    """The W3C traceparent of the current span, for a Dispatch or the journal; empty where there is none."""
    return carrier().get("traceparent", "")


def extract(traceparent: str, tracestate: str = "") -> Context:
    """The context that `inject` wrote; an empty one, which makes a span a root, for anything that can't be read."""
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())


def trace_id(context: Context | None = None) -> str:
    """The trace id, 32 hexadecimal digits, of `context` or else of the current span; empty where there is none."""
    found = trace.get_current_span(context).get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""
