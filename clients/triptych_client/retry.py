"""Retries with exponential back-off, jitter and a bound over all attempts together."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from triptych import rpc
from triptych.errors import DeadlinePassed, Full, TriptychError, Unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How to wait for a server that is starting, restarting or full."""

    delay_s_initial: float = 0.1
    """First wait: a controller restarts in less than a second."""
    delay_s_max: float = 2.0
    """Longest wait between two attempts: the delay a person bears after the server is back."""
    total_s_max: float = 60.0
    """Give up after so long without an answer."""
    attempt_s_max: float = 30.0
    """Longest single call that answers once. Requests carry images, so not shorter."""


class Backoff:
    """The waits of one series of attempts, and the point at which it is over."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        """Start anew: the other side has answered."""
        self._delay_s = self._policy.delay_s_initial
        self._end_s = time.monotonic() + self._policy.total_s_max

    @property
    def attempt_s(self) -> float:
        """Time that the next attempt may take."""
        return max(min(self._policy.attempt_s_max, self._end_s - time.monotonic()), self._policy.delay_s_initial)

    async def wait(self, error: TriptychError) -> None:
        """Wait before the next attempt, or raise `error` where there is no time for one.

        A server that is full says when it is worth a try: at least so long, and then not all clients at once.
        """
        delay_s = self._delay_s * random.uniform(0.5, 1.0)
        if isinstance(error, Full):
            delay_s += error.retry_after_s
        if time.monotonic() + delay_s >= self._end_s:
            raise error
        self._delay_s = min(self._delay_s * 2, self._policy.delay_s_max)
        await asyncio.sleep(delay_s)


def is_transient(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same call may well succeed later. Every RPC of GenerationService is safe to repeat.

    CANCELLED is what a stopping server leaves behind; a call that was cancelled here raises `CancelledError` instead.
    """
    return rpc.code_of(error) in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    )


def is_worth_retrying(error: grpc.aio.AioRpcError, found: TriptychError) -> bool:
    """Whether to ask again, for an error and what it is as one of ours.

    A full server counts, but not gRPC's own use of the same status, for messages that are too large.
    """
    return is_transient(error) or (isinstance(found, Full) and _is_named(error))


def error_of(error: grpc.aio.AioRpcError, address: str) -> TriptychError:
    """The error as one of ours; a server that can't be reached is named by its address."""
    found = rpc.error_from(error)
    if type(found) is Unavailable and not _is_named(error):
        return Unavailable(f"no answer from {address} ({error.details() or 'unavailable'})")
    if type(found) is DeadlinePassed and not _is_named(error):
        return DeadlinePassed(f"no answer from {address} in time")
    return found


async def call(
    attempt: Callable[[float], Awaitable[Result]],
    policy: RetryPolicy,
    address: str,
) -> Result:
    """Call `attempt(timeout_s)` until it answers. A server that says itself that it is full is asked again, too.

    Raises the last error, as one of `triptych.errors`, when it is not transient or the policy's time is over.
    """
    backoff = Backoff(policy)
    while True:
        try:
            return await attempt(backoff.attempt_s)
        except grpc.aio.AioRpcError as error:
            found = error_of(error, address)
            if not is_worth_retrying(error, found):
                raise found from error
            await backoff.wait(found)


def _is_named(error: grpc.aio.AioRpcError) -> bool:
    return any(key == rpc.ERROR_KEY for key, _value in error.trailing_metadata() or ())
