"""Errors as gRPC statuses, and back. The class travels in the trailing metadata, so the other side raises the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import grpc

from triptych import errors

Result = TypeVar("Result")

ERROR_KEY = "triptych-error"
"""Trailing metadata key of the error's class."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata key of `Full.retry_after_s`. It is gRPC's own, so that clients in other languages heed it."""
METADATA_CHARS_MAX = 512
"""Longest error detail in a status: HTTP/2 headers are limited to 8 KiB by default."""

STATUS_BY_ERROR: dict[type[errors.TriptychError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MissingExtra: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFinite: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.Fenced: grpc.StatusCode.PERMISSION_DENIED,
    errors.Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SourceCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
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


def code_of(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    """A call's status. gRPC's asyncio side says INTERNAL where a connection broke while a message was under way; here
    that is UNAVAILABLE, as for any other break. So is CANCELLED where no class is named: that is what a stopping
    server leaves behind of a call that came too late."""
    is_break = error.code() is grpc.StatusCode.INTERNAL and error.details() == _BREAK_DETAILS
    is_left_behind = error.code() is grpc.StatusCode.CANCELLED and not is_named(error)
    return grpc.StatusCode.UNAVAILABLE if is_break or is_left_behind else error.code()


def is_named(error: grpc.aio.AioRpcError) -> bool:
    """Whether a Triptych server raised the error on purpose, rather than gRPC or something on the way."""
    return ERROR_KEY in _trailing(error)


def error_from(error: grpc.aio.AioRpcError) -> errors.TriptychError:
    """The error that the server raised, as its class; by its status where that isn't named.

    A plain TriptychError stands for INTERNAL, UNIMPLEMENTED and other statuses that nobody raises on purpose.
    """
    trailing = _trailing(error)
    cls = getattr(errors, str(trailing.get(ERROR_KEY, "")), None)
    if not (isinstance(cls, type) and issubclass(cls, errors.TriptychError)):
        cls = _CLASS_BY_STATUS.get(code_of(error), errors.TriptychError)
    message = error.details() or error.code().name
    if issubclass(cls, errors.InvalidRequest):
        return errors.InvalidRequest.from_message(message)
    restored = cls.__new__(cls)
    Exception.__init__(restored, message)  # the message is whole already; a class may build its own from parts
    if isinstance(restored, errors.Full) and (pushback := str(trailing.get(PUSHBACK_KEY, ""))).isdecimal():
        restored.retry_after_s = int(pushback) / 1000
    return restored


def _trailing(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(iter(error.trailing_metadata() or ()))


_BREAK_DETAILS = "Internal error from Core"
"""See `code_of`. Triptych's servers never say this: they name the type of what escapes a servicer."""


async def translate(call: Awaitable[Result]) -> Result:
    """Await a call; raise its error as the class that the server raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        task = asyncio.current_task()
        if error.code() is grpc.StatusCode.CANCELLED and task is not None and task.cancelling():
            raise asyncio.CancelledError from error  # gRPC sometimes reports this task's own cancellation as a status
        raise error_from(error) from error


_CLASS_BY_STATUS: dict[grpc.StatusCode, type[errors.TriptychError]] = {
    status: cls for cls, status in reversed(STATUS_BY_ERROR.items())
}
