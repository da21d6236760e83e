"""Errors as gRPC statuses, and back, with the details of `google.rpc.Status` that clients in any language can read.

ErrorInfo has the error's class as its reason, so the other side raises the same. docs/errors.md lists the reasons.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from triptych import errors

Result = TypeVar("Result")
Trailing = tuple[tuple[str, str | bytes], ...]

DOMAIN = "triptych"
"""Of each ErrorInfo that comes from here."""
REASON_OF_BUGS = "INTERNAL"
"""Reason of all that isn't raised on purpose."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata key of `Full.retry_after_s`. It is gRPC's own, so that clients in other languages heed it."""
SENTENCE_CHARS_MAX = 512
"""Longest sentence in a status. Headers may have 8 KiB by default, and the sentence is in them up to three times."""
SENTENCE_BYTES_MAX = 1536
"""Of the same, as it is encoded in a header: three bytes for each that isn't ASCII."""
FIELD_CHARS_MAX = 128
"""Longest name of a field in a BadRequest: a few names, with indices."""

STATUS_BY_ERROR: dict[type[errors.TriptychError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MissingExtra: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFinite: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.Fenced: grpc.StatusCode.PERMISSION_DENIED,
    errors.Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SourceCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NoSuchMethod: grpc.StatusCode.UNIMPLEMENTED,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.JobCancelled: grpc.StatusCode.CANCELLED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The one table from error to gRPC status; a subclass takes its nearest listed ancestor's. Back from a status whose
sender names no class, the first listed counts."""


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL for anything not raised on purpose."""
    for cls in type(error).__mro__:
        if cls in STATUS_BY_ERROR:
            return STATUS_BY_ERROR[cls]
    return grpc.StatusCode.INTERNAL


def reason_of(cls: type[BaseException]) -> str:
    """The reason by which clients know a class: its name, as NO_SUCH_METHOD for NoSuchMethod."""
    if not issubclass(cls, errors.TriptychError) or cls is errors.TriptychError:
        return REASON_OF_BUGS
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


CLASS_BY_REASON: Mapping[str, type[errors.TriptychError]] = {
    reason_of(cls): cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, errors.TriptychError) and cls is not errors.TriptychError
}
"""Every error that is raised on purpose."""


def ending_of(error: Exception) -> tuple[grpc.StatusCode, str, Trailing]:
    """How a call ends that raised: its status, the sentence for the caller, and the trailing metadata.

    The sentence of a TriptychError may repeat the caller's own values; that of anything else stays with the server.
    """
    is_named = isinstance(error, errors.TriptychError)
    said = str(error) if is_named else f"internal error ({type(error).__name__}); the server's log has it"
    code, message = status_of(error), _bounded(said)
    details: list[Message] = [ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN)]
    trailing: list[tuple[str, str | bytes]] = []
    if isinstance(error, errors.InvalidRequest):
        description = _bounded(f"accepted: {error.accepted}" if error.accepted else said)
        violation = BadRequest.FieldViolation(field=error.field[:FIELD_CHARS_MAX], description=description)
        details.append(BadRequest(field_violations=[violation]))
    if isinstance(error, errors.TriptychError) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(RetryInfo(retry_delay=delay))
        if isinstance(error, errors.Full):
            trailing.append((PUSHBACK_KEY, str(math.ceil(error.retry_after_s * 1000))))
    status = Status(code=code.value[0], message=message, details=map(_packed, details))
    return code, message, (*rpc_status.to_status(status).trailing_metadata, *trailing)


def code_of(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    """A call's status. Where a connection breaks while a message is under way, gRPC's asyncio side says INTERNAL, and
    so does a proxy that resets a stream because its server is gone; here that is UNAVAILABLE, as for any other break.
    So is CANCELLED where no class is named: that is what a stopping server leaves behind of a call that came too late.
    """
    code = error.code()
    is_break = code is grpc.StatusCode.INTERNAL and _BREAK.search(error.details() or "") is not None
    is_left_behind = code is grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNAVAILABLE if (is_break or is_left_behind) and not is_named(error) else code


def is_named(error: grpc.aio.AioRpcError) -> bool:
    """Whether a Triptych server raised the error, rather than gRPC or something on the way."""
    return reason_from(error) != ""


def reason_from(error: grpc.aio.AioRpcError) -> str:
    """The reason that a Triptych server gave; empty if none did."""
    info = ErrorInfo()
    for detail in _details(error):
        if detail.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return ""


def error_from(error: grpc.aio.AioRpcError) -> errors.TriptychError:
    """The error that the server raised, as its class; by its status where that isn't named.

    A plain TriptychError stands for INTERNAL and other statuses that nobody raises on purpose.
    """
    cls = CLASS_BY_REASON.get(reason_from(error)) or _CLASS_BY_STATUS.get(code_of(error), errors.TriptychError)
    message = error.details() or error.code().name
    if issubclass(cls, errors.InvalidRequest):
        return errors.InvalidRequest.from_message(message)
    restored = cls.__new__(cls)
    Exception.__init__(restored, message)  # the message is whole already; a class may build its own from parts
    delay = RetryInfo()
    if any(detail.Unpack(delay) for detail in _details(error)):
        restored.retry_after_s = delay.retry_delay.ToNanoseconds() / 1e9
    return restored


def _packed(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _bounded(text: str) -> str:
    """The beginning of a text that may travel in a header."""
    text = text[:SENTENCE_CHARS_MAX]
    while len(text.encode()) * 3 > SENTENCE_BYTES_MAX and not text.isascii():
        text = text[: len(text) * 3 // 4]
    return text


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    try:
        status = rpc_status.from_call(error)
    except (DecodeError, ValueError):  # another one's, or somebody on the way has changed the status
        return []
    return list(status.details) if status is not None else []


_BREAK = re.compile("^Internal error from Core$|RST_STREAM")
"""What gRPC says of a break; see `code_of`. Triptych's servers name what they raise."""


def was_cut() -> bool:
    """In a handler of CancelledError: whether it only means that the call's channel was closed. Then nobody has asked
    this task to stop."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


async def translate(call: Awaitable[Result]) -> Result:
    """Await a call; raise its error as the class that the server raised."""
    try:
        return await call
    except asyncio.CancelledError:
        if was_cut():
            raise errors.Unavailable("the connection was given up: another controller is active") from None
        raise
    except grpc.aio.AioRpcError as error:
        task = asyncio.current_task()
        if error.code() is grpc.StatusCode.CANCELLED and task is not None and task.cancelling():
            raise asyncio.CancelledError from error  # gRPC sometimes reports this task's own cancellation as a status
        raise error_from(error) from error


_CLASS_BY_STATUS: dict[grpc.StatusCode, type[errors.TriptychError]] = {
    status: cls for cls, status in reversed(STATUS_BY_ERROR.items())
}
