"""One way to start a server, open a channel, and turn errors into statuses and back.

Every server has health, reflection, keepalive, a port that is an error when taken, and one interceptor that asks who
calls and whether it may, and turns a `TriptychError` into its status (the class travels in the trailing metadata, so
that the other side raises the same class). Anything else that escapes a servicer is a bug: it is logged, and leaves as
INTERNAL with its type only, because its text might hold a prompt. The interceptor also parses the requests, once it is
known who calls: bytes that are no message are the caller's mistake, and gRPC itself would call them INTERNAL.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from triptych import auth, errors, identity, loop_watch, message_bounds, telemetry

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Any, Any]

MESSAGE_BYTES_MAX = 64 * 2**20
"""Largest message: a request with its images, and what wraps it. What each method takes stands in `message_bounds`.
Tensors never travel in messages, only in 1 MiB chunks."""
KEEPALIVE_MS = 20_000
"""Ping interval: short enough that a dead peer is noticed before any of our timeouts of a minute."""
ERROR_KEY = "triptych-error"
"""Trailing metadata key of the error's class."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata key of `Full.retry_after_s`: gRPC's own, so that clients in other languages heed it, too."""
METADATA_CHARS_MAX = 512
"""Longest error detail in a status: HTTP/2 headers are limited to 8 KiB by default."""

_CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.so_reuseport", 0),
)
_CHANNEL_ONLY: Sequence[tuple[str, int | str]] = (
    # A restarted controller must be found again at once, not after gRPC's default two minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


Service = tuple[Callable[[Any, grpc.aio.Server], None], Any, str]
"""What a server serves: the generated `add_…_to_server`, the servicer, the full service name."""


class Server:
    """A running gRPC server. Use `start_server`; stop it with `stop`."""

    def __init__(self, server: grpc.aio.Server, address: str, names: Sequence[str], client_address: str = "") -> None:
        self._server = server
        self._health = health.aio.HealthServicer()
        self._names = names
        self.address = address
        self.client_address = client_address
        """Empty where there is no second port."""

    @property
    def port(self) -> int:
        """Port of `address`."""
        return int(self.address.rpartition(":")[2])

    async def set_serving(self, serving: bool) -> None:
        """Set what `grpc.health.v1` answers for the server and each of its services."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


async def start_server(
    address: str,
    services: Iterable[Service],
    *,
    serving: bool = True,
    security: auth.Security = auth.OPEN,
    client_address: str = "",
) -> Server:
    """Start a server at `host:port` (port 0 takes a free one).

    Where `security` has certificates, `address` takes callers with a certificate only (mutual TLS); `client_address`
    is a second port, TLS too, for those with a token only. Raises InvalidRequest when an address can't be bound.
    """
    services = list(services)
    server = grpc.aio.server(
        interceptors=[*telemetry.server_interceptors(), _EdgeInterceptor(security)], options=list(_SERVER_OPTIONS)
    )
    for add, servicer, _name in services:
        add(servicer, server)
    names = [name for _add, _servicer, name in services]
    certificates = security.certificates
    mutual = certificates.server_credentials(require_client=True) if certificates is not None else None
    bound, client_bound = _bind(server, "address", address, mutual), ""
    if client_address:
        if certificates is None or security.tokens is None:
            raise errors.InvalidRequest("client_address", client_address, "empty unless tls and tokens are set")
        one_sided = certificates.server_credentials(require_client=False)
        client_bound = _bind(server, "client_address", client_address, one_sided)
    result = Server(server, bound, names, client_bound)
    health_pb2_grpc.add_HealthServicer_to_server(result._health, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await result.set_serving(serving)
    await server.start()
    return result


def _bind(server: grpc.aio.Server, field: str, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Take a port; the address with its number. Raises InvalidRequest."""
    host, _, port_text = address.rpartition(":")
    if not host or not port_text.isdigit():
        raise errors.InvalidRequest(field, address, "host:port, for example 127.0.0.1:7070")
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError:
        port = 0
    if port == 0:
        raise errors.InvalidRequest(field, address, "a free port on an address of this machine")
    return f"{host}:{port}"


def open_channel(address: str, security: auth.Security = auth.OPEN) -> grpc.aio.Channel:
    """Open a traced channel to `host:port`. It connects lazily and reconnects by itself."""
    return security.open_channel(address, [*_CHANNEL_OPTIONS, *_CHANNEL_ONLY], telemetry.client_interceptors())


def code_of(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    """A call's status. gRPC's asyncio side has a word of its own for a connection that broke while a message was under
    way, and an alarming one; here it is UNAVAILABLE, as it is wherever else the break is noticed."""
    is_break = error.code() is grpc.StatusCode.INTERNAL and error.details() == _BREAK_DETAILS
    return grpc.StatusCode.UNAVAILABLE if is_break else error.code()


def error_from(error: grpc.aio.AioRpcError) -> errors.TriptychError:
    """The error that the server raised, as its class; by its status where that isn't named.

    A plain TriptychError stands for what nobody raises on purpose: INTERNAL, UNIMPLEMENTED and the like.
    """
    name = _trailing(error, ERROR_KEY)
    cls = getattr(errors, name, None) if name else None
    if not (isinstance(cls, type) and issubclass(cls, errors.TriptychError)):
        cls = _CLASS_BY_STATUS.get(code_of(error), errors.TriptychError)
    message = error.details() or error.code().name
    if issubclass(cls, errors.InvalidRequest):
        return errors.InvalidRequest.from_message(message)
    restored = cls.__new__(cls)
    Exception.__init__(restored, message)  # the message is whole already; a class may build its own from parts
    if isinstance(restored, errors.Full) and (pushback := _trailing(error, PUSHBACK_KEY)).isdecimal():
        restored.retry_after_s = int(pushback) / 1000
    return restored


def _trailing(error: grpc.aio.AioRpcError, key: str) -> str:
    for found, value in error.trailing_metadata() or ():
        if found == key:
            return value if isinstance(value, str) else value.decode()
    return ""


_BREAK_DETAILS = "Internal error from Core"
"""See `code_of`. Servers of ours say nothing of the kind: what escapes a servicer is told by its type."""


async def translate(call: Awaitable[Result]) -> Result:
    """Await a call; raise its error as the class that the server raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        task = asyncio.current_task()
        if error.code() is grpc.StatusCode.CANCELLED and task is not None and task.cancelling():
            raise asyncio.CancelledError from error  # now and then gRPC tells us of our own cancellation by a status
        raise error_from(error) from error


_CLASS_BY_STATUS = {
    status: cls
    for cls, status in errors.STATUS_BY_ERROR.items()
    if cls not in (errors.MissingExtra, errors.ModelInvalid)
}


class _EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler: callers are asked who they are, and errors leave as statuses."""

    def __init__(self, security: auth.Security) -> None:
        self._security = security

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)

        def admit(context: Context) -> None:
            if not method.startswith(auth.OPEN_METHODS):
                metadata = context.invocation_metadata() or ()
                identity.set_caller(self._security.authorize(method, context.auth_context(), metadata))

        build, serialize = handler.request_deserializer or bytes, handler.response_serializer
        descriptor = message_bounds.descriptor_of(build)

        def parse(data: bytes) -> Any:
            message_bounds.check(method, data, descriptor)
            return build(data)

        if handler.unary_unary:
            guarded = _guard_unary(handler.unary_unary, parse, method, admit)
            return grpc.unary_unary_rpc_method_handler(guarded, None, serialize)
        if handler.unary_stream:
            stream = _guard_stream(handler.unary_stream, parse, method, admit)
            return grpc.unary_stream_rpc_method_handler(stream, None, serialize)
        assert handler.stream_stream, "no service here has calls of another shape"
        stream = _guard_stream(handler.stream_stream, parse, method, admit)
        return grpc.stream_stream_rpc_method_handler(stream, None, serialize)


Parse = Callable[[bytes], Any]
Admit = Callable[[Context], None]


def _guard_unary(
    call: Callable[..., Awaitable[Any]], parse: Parse, method: str, admit: Admit
) -> Callable[..., Awaitable[Any]]:
    async def guarded(data: bytes, context: Context) -> Any:
        _message_bytes.set(len(data))
        loop_watch.METHOD.set(method)
        try:
            admit(context)
            return await call(_parsed(parse, data), context)
        except Exception as error:  # noqa: BLE001  (the edge: every error becomes a status)
            failure = error
        # Not inside the handler: the abort would carry the error's text along, and traces record what it carries.
        return await _abort(context, failure, method)

    return guarded


def _guard_stream(
    call: Callable[..., Any], parse: Parse, method: str, admit: Admit
) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(data: Any, context: Context) -> AsyncIterator[Any]:
        loop_watch.METHOD.set(method)
        try:
            admit(context)
            request = _parsed(parse, data) if isinstance(data, bytes) else _parsed_stream(parse, data)
            responses = call(request, context)
            if inspect.isawaitable(responses):  # gRPC's health service writes its answers by itself
                await responses
                return
            async for response in responses:
                yield response
        except Exception as error:  # noqa: BLE001  (the edge: every error becomes a status)
            failure = error
        else:
            return
        await _abort(context, failure, method)  # see `_guard_unary`

    return guarded


def _parsed(parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise errors.InvalidRequest("request", f"{len(data)} bytes", "a message of the method's type") from error


async def _parsed_stream(parse: Parse, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in stream:
        yield _parsed(parse, data)


_message_bytes: ContextVar[int] = ContextVar("message_bytes", default=0)


def message_bytes() -> int:
    """Length of the message of the unary call in hand; 0 outside of one. Counting anew takes as long as a copy."""
    return _message_bytes.get()


def uninterrupted(call: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """For a servicer's unary method that changes things in steps: it goes on to its end when its caller goes away.

    gRPC cancels the method of a call that is over. A change that has begun must not stop between two of its steps.
    """

    @functools.wraps(call)
    async def whole(*arguments: Any) -> Result:
        task = asyncio.ensure_future(call(*arguments))
        _unfinished.add(task)
        task.add_done_callback(_finished)
        return await asyncio.shield(task)

    return whole


_unfinished: set[asyncio.Future[Any]] = set()
"""Calls that go on, some without a caller. The event loop itself keeps tasks by weak references only."""


def _finished(task: asyncio.Future[Any]) -> None:
    _unfinished.discard(task)
    if not task.cancelled():
        task.exception()  # told to the caller, where that is still there


async def _abort(context: Context, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.BaseError | asyncio.CancelledError):
        raise error  # aborted already, or the call is over and there is nobody to tell
    status = errors.status_of(error)
    if isinstance(error, errors.TriptychError):
        metadata = [(ERROR_KEY, type(error).__name__)]
        if isinstance(error, errors.Full):
            metadata.append((PUSHBACK_KEY, str(math.ceil(error.retry_after_s * 1000))))
        context.set_trailing_metadata(tuple(metadata))
        message = str(error)
    else:
        log.error("%s raised %s", method, type(error).__name__, exc_info=error)
        message = f"internal error ({type(error).__name__}); the server's log has it"
    try:
        await context.abort(status, message[:METADATA_CHARS_MAX])
    finally:  # the caller is told its own values; the trace isn't
        telemetry.mark_failed(errors.public_text(error))
