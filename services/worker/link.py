"""A worker's tie to its controller: registration, the heartbeat stream, and calls that outlive a restart.

The worker registers, then holds one `Heartbeat` stream. When the stream breaks, for any reason, it registers again
and says what it holds; the controller answers with what still counts. So a lost connection, a restarted controller
and a rank that was declared dead take one path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from triptych import limits, rpc
from triptych.errors import (
    DeadlinePassed,
    Fenced,
    Full,
    JournalFull,
    TriptychError,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from triptych.rings.ring import Membership
from triptych.rpc.backoff import Backoff
from triptych.v1.dispatch_pb2 import Ring
from triptych.v1.fleet_service_pb2 import (
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    UnregisterWorkerRequest,
)
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub

from .registrations import Tie

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.fleet_service_pb2_grpc import FleetServiceAsyncStub

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CALL_TIMEOUT_S = 30.0
"""Bound of one unary call, beside what its bytes take (`triptych.limits`); a controller that takes longer is as good
as gone, and the call is repeated."""
REPORT_INTERVAL_MIN_S = 0.2
"""Shortest time between two reports of steps: five a second make a smooth progress bar."""
TRANSIENT = (Unavailable, DeadlinePassed, Unauthenticated)
"""Errors that a worker waits out once it has been a member. Unauthenticated is one of them because a token or a
certificate isn't replaced on both sides at the same moment, and a stage's work isn't thrown away for that."""


class Member(Protocol):
    """What the link asks of its worker."""

    def describe(self) -> RegisterWorkerRequest:
        """What the worker is and holds now; the link adds the registration's number."""

    def report(self) -> HeartbeatRequest:
        """What the worker does now; the link adds rank and numbers."""

    def registered(self, response: RegisterWorkerResponse) -> None:
        """The controller has answered `describe`: go on under its lease, release the rooms it names."""

    def apply_orders(self, orders: HeartbeatResponse) -> None:
        """Do what the controller orders."""


class Link:
    """See the module's docstring. `run` must run for as long as the link is used."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.fleet: FleetServiceAsyncStub = FleetServiceStub(channel)
        """The controller's FleetService; use it inside `call`."""
        self.membership = Membership()
        """The worker's rank and epoch; a new value with each registration."""
        self.result_url = ""
        """Where the controller wants results, as of the last registration."""
        self.turned = asyncio.Event()
        """Set when it may have changed whether this worker takes work; the task that waits for it clears it."""
        self._tie = Tie()
        self._stream: asyncio.Task[None] | None = None
        self.registered = asyncio.Event()
        """Set while the worker has a rank that holds, as far as it knows. Waits for it have no bound: without a
        controller a worker has nothing else to do."""
        self._registered_s = 0.0
        """When the worker was last known to be registered."""
        self._interval_s = 0.0
        self._worker_timeout_s = 0.0
        self._news = asyncio.Event()
        self._changes = asyncio.Event()
        self._changed_rings: set[Ring.ValueType] = set()
        self._made = 0
        """Number of the newest report."""
        self._taken = 0
        """Number of the newest report that the stream has taken up."""
        self._sent = asyncio.Condition()

    @property
    def is_cut_off(self) -> bool:
        """Whether the controller has been away for so long that it counts this worker as dead."""
        return not self.registered.is_set() and time.monotonic() - self._registered_s > self._worker_timeout_s

    def notify(self) -> None:
        """Something worth a report happened."""
        self._news.set()
        self.turned.set()

    def changed(self, ring: Ring.ValueType) -> None:
        """Tell the controller immediately that something in a ring became claimable: only this worker knows of it."""
        self._changed_rings.add(ring)
        self._changes.set()

    async def run(self, member: Member) -> None:
        """Keep `member` registered: send its reports, give it its orders. Returns only by an error.

        Raises the controller's refusal of the first registration (another model, bad fields). A worker that has been a
        member stays: the reason for a later refusal may be gone when it asks again.
        """
        backoff = Backoff()
        while True:
            try:
                await self._register(member)
                backoff.reset()
                self._stream = asyncio.create_task(self._heartbeat(member, self._tie.number))
                await asyncio.wait([self._stream])
                error = None if self._stream.cancelled() else self._stream.exception()
                if error is not None:
                    raise error
            except TriptychError as error:
                if not self.membership.rank and not isinstance(error, Unavailable | DeadlinePassed | Fenced | Full):
                    raise
                level = logging.WARNING if isinstance(error, Unreachable) else logging.INFO
                log.log(level, "controller: %s; registering again", error)
            finally:
                if self.registered.is_set():
                    self._registered_s = time.monotonic()
                self._untie(self._tie.number)
                if self._stream is not None:
                    self._stream.cancel()
            await asyncio.sleep(backoff.next_s())

    async def call(
        self, make: Callable[[], Awaitable[Result]], *, waits_for_journal: bool = True, size_bytes: int = 0
    ) -> Result:
        """Call the controller until it answers. Raises what it refuses with.

        `make` is called for each try and must build its request again, because rank and lease may have changed.
        `size_bytes` is what a call carries, there and back. A full disk of the controller's is waited out, so that a
        stage's work isn't thrown away. A refusal counts only for the registration that the call was made under.
        """
        timeout_s = CALL_TIMEOUT_S + limits.allowance_s(size_bytes)
        backoff = Backoff()
        while True:
            await self.registered.wait()
            number = self._tie.number
            after_s = 0.0
            try:
                return await asyncio.wait_for(rpc.translate(make()), timeout_s)
            except Fenced:
                self._untie(number)
            except (*TRANSIENT, TimeoutError) as error:
                log.info("controller did not answer (%s); trying again", error)
            except JournalFull as error:
                if not waits_for_journal:
                    raise
                log.warning("controller: %s", error)
                after_s = error.retry_after_s
            except TriptychError as error:
                if self._tie.number == number:
                    raise
                log.info("controller refused a call of an older registration (%s); trying again", error)
            await asyncio.sleep(backoff.next_s(after_s))

    def _untie(self, number: int) -> None:
        """The registration of this number is over. An older number changes nothing."""
        if self._tie.ended(number):
            self.registered.clear()
            self.turned.set()
            if self._stream is not None:
                self._stream.cancel()  # makes `run` register again

    async def reported(self, timeout_s: float) -> None:
        """Return when the stream has taken up a report made after this call, or when the time is over."""
        wanted = self._made + 1
        self.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._sent:
                await self._sent.wait_for(lambda: self._taken >= wanted)

    async def leave(self, broken: str = "") -> None:
        """Give the rank up; `broken` says why where nobody asked for it. Without a controller, silence tells it."""
        request = UnregisterWorkerRequest(rank=self.membership.rank, broken=broken)
        with contextlib.suppress(TriptychError):
            await rpc.translate(self.fleet.UnregisterWorker(request, timeout=CALL_TIMEOUT_S))

    async def _register(self, member: Member) -> None:
        request = member.describe()
        request.number = self._tie.ask()
        timeout_s = CALL_TIMEOUT_S + limits.allowance_s(request.ByteSize())
        response = await rpc.translate(self.fleet.RegisterWorker(request, timeout=timeout_s))
        self.membership = Membership(response.rank, response.epoch)
        self.result_url = response.result_url
        self._interval_s = response.heartbeat_interval.ToNanoseconds() / 1e9
        self._worker_timeout_s = response.worker_timeout.ToNanoseconds() / 1e9
        member.registered(response)
        self._tie.answered(request.number)
        self.registered.set()
        self.turned.set()
        log.info("registered in epoch %d", response.epoch, extra={"rank": response.rank})

    async def _heartbeat(self, member: Member, number: int) -> None:
        call = self.fleet.Heartbeat(self._reports(member, number))
        try:
            async for orders in call:
                if self._tie.ordered(number, orders.number):
                    member.apply_orders(orders)
                    self.notify()  # acknowledges them
        except grpc.aio.AioRpcError as error:
            raise rpc.error_from(error) from error
        finally:
            call.cancel()

    async def _reports(self, member: Member, number: int) -> AsyncIterator[HeartbeatRequest]:
        while True:
            self._news.clear()
            self._changes.clear()
            report = member.report()
            report.rank = self.membership.rank
            report.registration_number = number
            report.orders_number = self._tie.applied
            report.changed_rings.extend(self._changed_rings)
            self._changed_rings.clear()
            self._made += 1
            made = self._made
            yield report
            async with self._sent:
                self._taken = made
                self._sent.notify_all()
            shortest_s = min(REPORT_INTERVAL_MIN_S, self._interval_s)
            if not await any_set(self._changes, timeout_s=shortest_s):
                await any_set(self._changes, self._news, timeout_s=self._interval_s - shortest_s)


async def any_set(*events: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait until one of the events is set or the time is over; whether one is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
