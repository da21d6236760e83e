"""Mistakes in the tie, one each, as they once were. The simulator is worth its time only while it catches them all."""

from __future__ import annotations

from typing import Any

from services.controller import jobs
from services.controller.fleet import Fleet, Member
from services.controller.holdings import Holdings
from services.controller.orders import Orders
from services.worker.link import Link
from tests.tie.network import FaultMix
from tests.tie.world import Parts
from triptych.v1.fleet_service_pb2 import HeartbeatResponse, RunningPhase
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease


class LinkThatForgets(Link):
    """A refusal ends whatever registration there is, and no stream but that of its own."""

    def _untie(self, number: int) -> None:
        if self._tie.number == number and self._stream is not None:
            self._stream.cancel()
        self._tie.is_tied = self._tie.is_tied and self._tie.number != number
        self.registered.clear()


class OrdersThatAreEvents(Orders):
    """What went out is done."""

    def take(self) -> HeartbeatResponse:
        result = super().take()
        self.acknowledged(self._number)
        return result


class MemberOfOldStreams(Member):
    """Orders go to whatever stream came last, also when the worker has registered since."""

    def __post_init__(self) -> None:
        self.orders = OrdersThatAreEvents()

    def end_stream(self) -> None:
        """Nothing ends it but a newer one."""

    def open_stream(self) -> int:
        self.stream += 1
        self.changed.set()
        return self.stream


class HoldingsThatAdoptOnce(Holdings):
    """A worker must name the very lease that the journal has."""

    async def _adopt(self, rank: int, entry: JournalEntry, running: RunningPhase) -> Lease | None:
        if running.dispatch.role != jobs.role_of(entry):
            return None
        ring = self._core.rings[jobs.role_of(entry)]
        if running.lease.rank == rank and ring.holds(running.lease):
            return running.lease
        if not (jobs.is_running(entry) and entry.lease == running.lease):
            return None
        return await self._lease_again(rank, entry)


class _Members(dict[int, Member]):
    def setdefault(self, rank: int, member: Any = None) -> Member:
        return super().setdefault(rank, MemberOfOldStreams(rank, member.seen_s))


class FleetOfOldStreams(Fleet):
    """Its members are such."""

    def __init__(self) -> None:
        self.members = _Members()


LATE_ANSWERS = FaultMix(calls=0.5, registrations=0.0, streams=0.1, call_faults=["answer late"])
"""Streams hold, because a broken one makes its worker register again."""
LATE_REGISTRATIONS = FaultMix(
    calls=0.0, registrations=1.0, streams=1.0, registration_faults=["answer late"], late_s_max=4.5
)
"""The controller has a registration, and its worker no new stream yet; not so late that the worker counts as dead."""
LOST_REGISTRATIONS = FaultMix(
    calls=0.0, registrations=0.9, streams=1.0, registration_faults=["answer lost"], late_s_max=4.0
)
"""Workers register again and again while they run jobs."""
PLANTED: dict[str, Parts] = {
    "a late refusal ends a newer registration": Parts(link=LinkThatForgets, mix=LATE_ANSWERS),
    "orders are lost with an old stream": Parts(fleet=FleetOfOldStreams, mix=LATE_REGISTRATIONS),
    "an adoption is answered once": Parts(holdings=HoldingsThatAdoptOnce, mix=LOST_REGISTRATIONS),
}
