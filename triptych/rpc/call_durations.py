"""Measures each call that a server answers: by method and by the status that it ended with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pool

from triptych import telemetry

Context = grpc.aio.ServicerContext[Any, Any]

_MAKERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""Handlers by whether requests and responses stream."""


UNKNOWN_METHOD = "_OTHER"
"""The conventions' name for a method that the server doesn't have."""


def _recognized(method: str) -> str:
    """The method as metrics have it: callers make up others, and each would be a series."""
    try:
        descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
    except KeyError:
        return UNKNOWN_METHOD
    return method


class CallDurations(grpc.aio.ServerInterceptor):
    """Comes before the edge, so that what that refuses is measured, too, and inside of a call's span."""

    def __init__(self, metrics: telemetry.Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        assert handler, "the edge answers for methods that nobody serves"
        method = _recognized(str(handler_call_details.method))
        codec = handler.request_deserializer, handler.response_serializer
        one_answer: Any = handler.unary_unary or handler.stream_unary  # the stubs have the types of blocking servers
        answers: Any = handler.unary_stream or handler.stream_stream

        async def single(request: Any, context: Context) -> Any:
            with self._measured(method, context):
                return await one_answer(request, context)

        async def streamed(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._measured(method, context):
                async for response in answers(request, context):
                    yield response

        make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(streamed if handler.response_streaming else single, *codec)

    @contextmanager
    def _measured(self, method: str, context: Context) -> Iterator[None]:
        started_s = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            is_late = context.time_remaining() == 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.UNKNOWN
            raise
        finally:
            # What the edge has aborted a call with, or a servicer has set, says it better.
            self._metrics.called(method, (context.code() or code).name, time.monotonic() - started_s)
