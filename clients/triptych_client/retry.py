"""Retries with exponential back-off, jitter and a bound over all attempts together."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from triptych import limits, rpc
from triptych.errors import DeadlinePassed, Full, InvalidRequest, TriptychError, Unavailable, Unreachable, WrongState
from triptych.rpc.backoff import Backoff

Result = TypeVar("Result")

RATE_MAX = 1e12
"""A terabyte a second."""


@dataclass(frozen=True)
class RetryPolicy:
    """How to wait for a server that is starting, restarting or full."""

    delay_s_initial: float = 0.1
    """First wait: a controller restarts in less than a second."""
    delay_s_max: float = 2.0
    """Longest wait between two attempts: the delay a person bears after the server is back."""
    total_s_max: float = 60.0
    """Give up after so long without an answer."""
    absent_s_max: float = 60.0
    """Give up after so long where no connection can be made at all."""
    attempt_s_max: float = 30.0
    """Longest single call, beside what its bytes take."""
    bytes_per_s_min: float = limits.BYTES_PER_S_MIN
    """Slowest line that is waited for: what a call carries adds so much to its time."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "bytes_per_s_min":
                limits.check_seconds(field.name, getattr(self, field.name))
        if not 1 <= self.bytes_per_s_min <= RATE_MAX:
            raise InvalidRequest("bytes_per_s_min", self.bytes_per_s_min, f"1 to {RATE_MAX:g}")


class Attempts:
    """One series of attempts: the waits between them, and when it is over. Each attempt carries `size_bytes`."""

    def __init__(self, policy: RetryPolicy, size_bytes: int = 0) -> None:
        self._policy = policy
        self._allowance_s = limits.allowance_s(size_bytes, policy.bytes_per_s_min)
        self._backoff = Backoff(policy.delay_s_initial, policy.delay_s_max)
        self.reset()

    def reset(self) -> None:
        """Begin again: the other side has answered."""
        self._backoff.reset()
        self._start_s = time.monotonic()
        # Twice, because a connection may break when nearly all of it is sent.
        self._end_s = self._start_s + self._policy.total_s_max + 2 * self._allowance_s

    @property
    def attempt_s(self) -> float:
        """Time that the next attempt may take."""
        longest_s = self._policy.attempt_s_max + self._allowance_s
        return max(min(longest_s, self._end_s - time.monotonic()), self._policy.delay_s_initial)

    async def wait(self, error: TriptychError) -> None:
        """Wait before the next attempt, or raise `error` where there is no time for one.

        A full server says when to try again: the wait is at least as long, and jitter spreads the clients.
        """
        delay_s = self._backoff.next_s(error.retry_after_s if isinstance(error, Full) else 0.0)
        again_s = time.monotonic() + delay_s
        if isinstance(error, Unreachable) and again_s >= self._start_s + self._policy.absent_s_max:
            raise error
        if again_s + self._allowance_s >= self._end_s:  # an attempt could not end in time
            raise error
        await asyncio.sleep(delay_s)


def is_transient(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same call may well succeed later. Every RPC of GenerationService is safe to repeat."""
    return rpc.code_of(error) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def transient(error: grpc.aio.AioRpcError, address: str) -> Full | Unavailable:
    """What to wait for before a stream is opened again. Raises the error where that would not help."""
    found = error_of(error, address)
    if not _is_worth_retrying(error, found):
        raise found from error
    return found if isinstance(found, Full | Unavailable) else Unavailable(str(found))


def _is_worth_retrying(error: grpc.aio.AioRpcError, found: TriptychError) -> bool:
    """Whether to ask again. A full server counts, but not gRPC's own use of its status, for too large messages."""
    return is_transient(error) or (isinstance(found, Full) and rpc.is_named(error))


def error_of(error: grpc.aio.AioRpcError, address: str) -> TriptychError:
    """The error as a class of `triptych.errors`. A server that can't be reached is named by its address."""
    found = rpc.error_from(error)
    if type(found) is Unavailable and not rpc.is_named(error):
        return Unreachable(f"no answer from {address} ({_reason(error.details() or '')})")
    if type(found) is DeadlinePassed and not rpc.is_named(error):
        return DeadlinePassed(f"no answer from {address} in time")
    return found


def closed() -> WrongState:
    """What gRPC's UsageError means: its channels are closed for good. A call that this cuts looks like any broken one,
    and finds out when it tries again."""
    return WrongState("this client is closed")


async def call(
    attempt: Callable[[float], Awaitable[Result]],
    policy: RetryPolicy,
    address: str,
    size_bytes: int = 0,
) -> Result:
    """Call `attempt(timeout_s)` until it answers. A server that says itself that it is full is asked again, too.

    `size_bytes` is what an attempt carries; it adds to its time. Raises the last error, as one of `triptych.errors`,
    when it is not transient or the policy's time is over, and WrongState when the client has been closed.
    """
    attempts = Attempts(policy, size_bytes)
    while True:
        attempt_s = attempts.attempt_s
        try:
            return await attempt(attempt_s)
        except asyncio.CancelledError:
            if not rpc.was_cut():
                raise
            await attempts.wait(Unavailable(f"the connection to {address} was given up"))
        except grpc.aio.UsageError as error:
            raise closed() from error
        except grpc.aio.AioRpcError as error:
            found = error_of(error, address)
            if type(found) is DeadlinePassed and not rpc.is_named(error) and size_bytes > limits.LARGE_BYTES:
                size = limits.bytes_text(size_bytes)
                rate = limits.bytes_text(policy.bytes_per_s_min)
                sentence = f"no answer from {address} within {attempt_s:.0f} s, the time for {size} at {rate} a second"
                raise DeadlinePassed(sentence) from error  # another try would send all of it again, as slowly
            if not _is_worth_retrying(error, found):
                raise found from error
            await attempts.wait(found)


async def call_method(
    method: Callable[..., Awaitable[Result]], message: Message, policy: RetryPolicy, address: str
) -> Result:
    """As `call`, of a stub's method that takes one message."""
    return await call(lambda left_s: method(message, timeout=left_s), policy, address, message.ByteSize())


REASON_CHARS_MAX = 200
"""Longest piece of what gRPC says that is passed on."""
_REASONS = (
    (re.compile(r"Connection refused"), "connection refused"),
    (re.compile(r"errors resolving|DNS resolution failed|lookup failed"), "its name can't be resolved"),
    (re.compile(r"No route to host|Network is unreachable"), "there is no way to it"),
    (re.compile(r"HTTP proxy returned response code (\d+)"), r"the proxy answers \1"),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED[^)]*"), "its certificate isn't of our authority, or not for that name"),
    (re.compile(r"WRONG_VERSION_NUMBER"), "it doesn't speak TLS"),
    (re.compile(r"http1\.x server"), "it speaks HTTP/1 and no gRPC"),
)
"""What gRPC's sentences mean, by what they hold."""


def _reason(details: str) -> str:
    for pattern, meaning in _REASONS:
        if found := pattern.search(details):
            return found.expand(meaning)
    last = details.rpartition("last error: ")[2].partition("\n")[0].strip()
    return last[:REASON_CHARS_MAX] or "unavailable"
