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
from triptych.rpc.handlers import method_of, with_method

Context = grpc.aio.ServicerContext[Any, Any]

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
        call = method_of(handler)

        async def single(request: Any, context: Context) -> Any:
            with self._measured(method, context):
                return await call(request, context)

        async def streamed(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._measured(method, context):
                async for response in call(request, context):
                    yield response

        measured = streamed if handler.response_streaming else single
        return with_method(handler, measured, handler.request_deserializer, handler.response_serializer)

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
