"""What each call to a server passes first: who calls, whether it may, what it says; and how it ends."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from triptych import errors, telemetry
from triptych.rpc.handlers import method_of, with_method
from triptych.rpc.requests import parser
from triptych.rpc.status import Result, ending_of
from triptych.security import auth, identity
from triptych.telemetry import loop_watch

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


Gate = Callable[[], None]
"""Asked before each answer, but those of health; raises one of `triptych.errors` where this server may give none."""


def open_gate() -> None:
    """The gate of a server that may always answer."""


class EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler: callers prove who they are, and errors become statuses."""

    def __init__(self, security: auth.Security, gate: Gate) -> None:
        self._security = security
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(functools.partial(_refuse, method, self._gate))

        gate = open_gate if method.startswith(auth.OPEN_METHODS) else self._gate

        def admit(context: Context) -> None:
            if not method.startswith(auth.OPEN_METHODS):
                metadata = context.invocation_metadata() or ()
                identity.set_caller(self._security.authorize(method, context.auth_context(), metadata))

        parse = parser(method, handler.request_deserializer or bytes)
        if handler.request_streaming:
            parse = functools.partial(_parsed_stream, parse)
        guard = _guard_stream if handler.response_streaming else _guard_unary
        guarded = guard(method_of(handler), parse, method, admit, gate)
        return with_method(handler, guarded, None, handler.response_serializer)


async def _refuse(method: str, gate: Gate, requests: Any, context: Context) -> AsyncIterator[bytes]:
    """Answers a call of a method that nobody serves. gRPC's own answer says less, and has no details."""
    failure: errors.TriptychError = errors.NoSuchMethod(f"there is no {method[: errors.SHOWN_CHARS_MAX]} here")
    try:
        gate()
    except errors.TriptychError as error:
        failure = error
    await _abort(context, failure, method)
    yield b""


Parse = Callable[[Any], Any]
"""Makes a message of bytes, or a stream of messages of a stream of bytes."""
Admit = Callable[[Context], None]


def _guard_unary(
    call: Callable[..., Awaitable[Any]], parse: Parse, method: str, admit: Admit, gate: Gate
) -> Callable[..., Awaitable[Any]]:
    async def guarded(data: Any, context: Context) -> Any:
        _message_bytes.set(len(data) if isinstance(data, bytes) else 0)
        loop_watch.METHOD.set(method)
        try:
            admit(context)
            answer = await call(parse(data), context)
            gate()
            return answer
        except Exception as error:  # noqa: BLE001  (the edge: every error becomes a status)
            failure = error
        # Not inside the handler: the abort would have the error as its context, and traces record its text.
        return await _abort(context, failure, method)

    return guarded


def _guard_stream(
    call: Callable[..., Any], parse: Parse, method: str, admit: Admit, gate: Gate
) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(data: Any, context: Context) -> AsyncIterator[Any]:
        loop_watch.METHOD.set(method)
        try:
            admit(context)
            responses = call(parse(data), context)
            if inspect.isawaitable(responses):  # gRPC's health service writes its answers by itself
                await responses
                return
            async for response in responses:
                gate()
                yield response
        except Exception as error:  # noqa: BLE001  (the edge: every error becomes a status)
            failure = error
        else:
            return
        await _abort(context, failure, method)  # see `_guard_unary`

    return guarded


async def _parsed_stream(parse: Parse, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in stream:
        yield parse(data)


_message_bytes: ContextVar[int] = ContextVar("message_bytes", default=0)


def message_bytes() -> int:
    """Length of the message of the unary call in hand; 0 outside of one. Counting takes as long as a copy."""
    return _message_bytes.get()


def uninterrupted(call: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """For a servicer's unary method that changes things in steps: it runs to its end even if its caller goes away.

    gRPC cancels the method of a call that is over, and a change must not stop between two of its steps.
    """

    @functools.wraps(call)
    async def whole(*arguments: Any) -> Result:
        task = asyncio.ensure_future(call(*arguments))
        _unfinished.add(task)
        task.add_done_callback(_finished)
        return await asyncio.shield(task)

    return whole


_unfinished: set[asyncio.Future[Any]] = set()
"""Calls that run, some without a caller. The event loop itself keeps weak references to tasks only."""


def _finished(task: asyncio.Future[Any]) -> None:
    _unfinished.discard(task)
    if not task.cancelled():
        task.exception()  # the caller is told, if it is still there


async def _abort(context: Context, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.BaseError | asyncio.CancelledError):
        raise error  # it is aborted already, or the call is over
    if not isinstance(error, errors.TriptychError):
        log.error("%s raised %s", method, type(error).__name__, exc_info=error)
    code, message, trailing = ending_of(error)
    try:
        await context.abort(code, message, trailing)
    finally:  # the caller is told its own values; the trace isn't
        telemetry.mark_failed(errors.public_text(error), code.name)
