"""A worker's tie to its controller: registration, the heartbeat stream, and calls that outlive a restart.

The worker registers, then holds one `Heartbeat` stream. When the stream breaks, for whatever reason, it registers
again and says what it holds; the controller answers with what still counts. So a lost connection, a restarted
controller and a rank that was declared dead are one path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from triptych import rpc
from triptych.errors import DeadlinePassed, Fenced, Full, JournalFull, TriptychError, Unauthenticated, Unavailable
from triptych.tie import Tie
from triptych.v1.dispatch_pb2 import Ring
from triptych.v1.fleet_service_pb2 import (
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    UnregisterWorkerRequest,
)
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.fleet_service_pb2_grpc import FleetServiceAsyncStub

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CALL_TIMEOUT_S = 30.0
"""Bound of one unary call; a controller that takes longer is as good as gone, and the call is repeated."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 1.0
"""Longest pause between two tries: a restarted controller has its workers back within about a second."""
REPORT_INTERVAL_MIN_S = 0.2
"""Reports of steps at most so often: five a second is smooth for a progress bar and nothing for the network."""


class Member(Protocol):
    """What the link asks of its worker."""

    def describe(self) -> RegisterWorkerRequest:
        """What the worker is and holds now; the link fills in the rank."""

    def report(self) -> HeartbeatRequest:
        """What the worker does now; the link fills in the rank."""

    def registered(self, response: RegisterWorkerResponse) -> None:
        """The controller answered what `describe` said: take over the lease, release the rooms."""

    def obey(self, orders: HeartbeatResponse) -> None:
        """Orders came."""


PASSING = (Unavailable, DeadlinePassed, Unauthenticated)
"""What a worker that was a member once waits out. A token or certificate that is changed on both sides isn't changed
at the same moment, and a stage's work isn't thrown away for that."""


class Link:
    """See the module's docstring. `run` must run for as long as the link is used."""

    def __init__(self, channel: grpc.aio.Channel, member: Member) -> None:
        self._stub: FleetServiceAsyncStub = FleetServiceStub(channel)
        self._member = member
        self._registered = asyncio.Event()
        self._news = asyncio.Event()
        self._changes = asyncio.Event()
        self._changed_rings: set[Ring.ValueType] = set()
        self._stream: asyncio.Task[None] | None = None
        self._tie = Tie()
        self._made = self._taken = 0
        """Reports, numbered: the newest, and the newest that the stream asked for another after."""
        self._sent = asyncio.Condition()
        self._registered_s = 0.0
        """When the worker was last known to be registered."""
        self._interval_s = self._worker_timeout_s = 0.0
        self.rank = 0
        self.epoch = 0
        self.result_url = ""

    @property
    def fleet(self) -> FleetServiceAsyncStub:
        """The controller's FleetService; use it inside `call`."""
        return self._stub

    @property
    def is_cut_off(self) -> bool:
        """Whether the controller has been away for so long that it counts this worker as dead."""
        return not self._registered.is_set() and time.monotonic() - self._registered_s > self._worker_timeout_s

    def notify(self) -> None:
        """Something worth a report happened."""
        self._news.set()

    def changed(self, ring: Ring.ValueType) -> None:
        """Something was made claimable that only this worker knows of: tell the controller, at once."""
        self._changed_rings.add(ring)
        self._changes.set()

    async def wait_registered(self) -> None:
        """Return once the worker has a rank. Unbounded: without a controller a worker has nothing else to do."""
        await self._registered.wait()

    async def run(self) -> None:
        """Register, report, obey, for ever. Errors of configuration (another model, bad fields) are raised at first.

        A worker that was a member once stays: whatever is in its way now may be gone when it asks again.
        """
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                await self._register()
                backoff_s = BACKOFF_FIRST_S
                self._stream = asyncio.create_task(self._heartbeat(self._tie.number))
                await asyncio.wait([self._stream])
                error = None if self._stream.cancelled() else self._stream.exception()
                if error is not None:
                    raise error
            except TriptychError as error:
                if not self.rank and not isinstance(error, Unavailable | DeadlinePassed | Fenced | Full):
                    raise
                log.info("controller: %s; registering again", error)
            finally:
                if self._registered.is_set():
                    self._registered_s = time.monotonic()
                self._untie(self._tie.number)
                if self._stream is not None:
                    self._stream.cancel()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def call(self, make: Callable[[], Awaitable[Result]], *, waits_for_journal: bool = True) -> Result:
        """Call the controller until it answers. `make` is called again after each restart, and must build its
        request anew, because rank and lease may have changed. Raises what the controller refuses with, but waits
        where its disk is full: what a stage has done isn't thrown away for that. A refusal counts for the registration
        that the call was made under, and never for a newer."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            await self._registered.wait()
            number = self._tie.number
            try:
                return await asyncio.wait_for(rpc.translate(make()), CALL_TIMEOUT_S)
            except Fenced:
                self._untie(number)
            except (*PASSING, TimeoutError) as error:
                log.info("controller did not answer (%s); trying again", error)
            except JournalFull as error:
                if not waits_for_journal:
                    raise
                log.warning("controller: %s", error)
                backoff_s = max(backoff_s, error.retry_after_s)
            except TriptychError as error:
                if self._tie.number == number:
                    raise
                log.info("controller refused a call of an older registration (%s); trying again", error)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    def _untie(self, number: int) -> None:
        """The registration of this number is over. What is of an older one changes nothing."""
        if self._tie.ended(number):
            self._registered.clear()
            if self._stream is not None:
                self._stream.cancel()  # makes `run` register again

    async def reported(self, timeout_s: float) -> None:
        """Return when a report that was made from now on has been taken up by the stream, or when the time is over."""
        wanted = self._made + 1
        self.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._sent:
                await self._sent.wait_for(lambda: self._taken >= wanted)

    async def leave(self, broken: str = "") -> None:
        """Give the rank up; `broken` says why, where nobody asked for it. Without a controller, silence tells it."""
        request = UnregisterWorkerRequest(rank=self.rank, broken=broken)
        with contextlib.suppress(TriptychError):
            await rpc.translate(self._stub.UnregisterWorker(request, timeout=CALL_TIMEOUT_S))

    async def _register(self) -> None:
        request = self._member.describe()
        request.previous_rank, request.number = self.rank, self._tie.ask()
        response = await rpc.translate(self._stub.RegisterWorker(request, timeout=CALL_TIMEOUT_S))
        self.rank, self.epoch, self.result_url = response.rank, response.epoch, response.result_url
        self._interval_s = response.heartbeat_interval.ToNanoseconds() / 1e9
        self._worker_timeout_s = response.worker_timeout.ToNanoseconds() / 1e9
        self._member.registered(response)
        self._tie.answered(request.number)
        self._registered.set()
        log.info("registered in epoch %d", self.epoch, extra={"rank": self.rank})

    async def _heartbeat(self, number: int) -> None:
        call = self._stub.Heartbeat(self._reports(number))
        try:
            async for orders in call:
                if self._tie.ordered(number, orders.number):
                    self._member.obey(orders)
                    self.notify()  # acknowledges them
        except grpc.aio.AioRpcError as error:
            raise rpc.error_from(error) from error
        finally:
            call.cancel()

    async def _reports(self, number: int) -> AsyncIterator[HeartbeatRequest]:
        while True:
            self._news.clear()
            self._changes.clear()
            report = self._member.report()
            report.rank, report.registration_number, report.orders_number = self.rank, number, self._tie.obeyed
            report.changed_rings.extend(self._changed_rings)
            self._changed_rings.clear()
            self._made += 1
            made = self._made
            yield report
            async with self._sent:
                self._taken = made
                self._sent.notify_all()
            shortest_s = min(REPORT_INTERVAL_MIN_S, self._interval_s)
            if not await _happens(shortest_s, self._changes):
                await _happens(self._interval_s - shortest_s, self._changes, self._news)


async def _happens(timeout_s: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set or the time is over; whether one is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
