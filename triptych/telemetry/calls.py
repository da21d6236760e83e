"""Which calls make spans, as `rules.proto` says, and the gRPC interceptors for that.

A call makes one span, at its server: a call that begins a job always, a call that is part of one where its caller is
in a trace already. So each job has one root, and neither polling nor a long stream nor the small calls of a worker
become spans. Names and attributes are OpenTelemetry's for RPCs
(https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/); the library that instruments gRPC writes their older form,
with a span at each end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from opentelemetry import trace

from triptych.security.rules import rules_of
from triptych.telemetry import tracing
from triptych.v1.rules_pb2 import SPAN_PART, SPAN_ROOT


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for `grpc.aio` channels; none where spans aren't recorded."""
    return [_Caller()] if tracing.is_recording() else []


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Interceptors for `grpc.aio` servers, to be put first; none where spans aren't recorded."""
    return [_Server()] if tracing.is_recording() else []


def mark_failed(text: str, code: str) -> None:
    """Mark the span of the call in hand as failed with a status of gRPC, for example `NOT_FOUND`."""
    current = trace.get_current_span()
    current.set_status(trace.StatusCode.ERROR, text)
    current.set_attributes({"rpc.response.status_code": code, "error.type": code})


class _Caller(grpc.aio.UnaryUnaryClientInterceptor):
    """Tells the server which span a call belongs to. No call that makes a span is a stream."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = client_call_details
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        if rules_of(method).span in (SPAN_ROOT, SPAN_PART):
            details = details._replace(metadata=(*(details.metadata or ()), *tracing.carrier().items()))
        return await continuation(details, request)


class _Server(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        rule = rules_of(method).span
        headers = {str(key): str(value) for key, value in handler_call_details.invocation_metadata or ()}
        parent = tracing.extract(headers.get("traceparent", ""), headers.get("tracestate", ""))
        is_wanted = rule == SPAN_ROOT or (rule == SPAN_PART and tracing.trace_id(parent))
        if handler is None or not handler.unary_unary or not is_wanted:
            return handler
        call = handler.unary_unary
        also = {"rpc.system.name": "grpc", "rpc.method": method[1:]}

        async def traced(request: Any, context: Any) -> Any:
            with tracing.span(method[1:], kind="server", parent=parent, also=also) as span:
                response = await call(request, context)
                span.set_attribute("rpc.response.status_code", "OK")
                return response

        return grpc.unary_unary_rpc_method_handler(traced, handler.request_deserializer, handler.response_serializer)
