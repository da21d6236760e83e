"""Mistakes in the tie, one each, as they once were. The simulator is worth its time only while it catches them all."""

from __future__ import annotations

import contextlib
from typing import Any

from services.controller import jobs
from services.controller.fleet import Fleet, Member
from services.controller.holdings import Holdings
from services.controller.orders import Orders
from services.worker.link import Link
from tests.tie.world import Parts
from triptych.errors import Fenced, LeaseLost, RingFull
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
        try:
            lease = ring.adopt(jobs.dispatch_of(entry), rank)
        except RingFull:
            return None
        try:
            await self._lifecycle.change_lease(entry.job.job_id, running.lease, lease)
        except LeaseLost:
            with contextlib.suppress(LeaseLost, Fenced):
                await ring.ack(lease)
            return None
        return lease


class _Members(dict[int, Member]):
    def setdefault(self, rank: int, member: Any = None) -> Member:
        return super().setdefault(rank, MemberOfOldStreams(rank, member.seen_s))


class FleetOfOldStreams(Fleet):
    """Its members are such."""

    def __init__(self) -> None:
        self.members = _Members()


PLANTED: dict[str, Parts] = {
    "a late refusal ends a newer registration": Parts(link=LinkThatForgets, fault_share=0.6),
    "orders are lost with an old stream": Parts(fleet=FleetOfOldStreams),
    "an adoption is answered once": Parts(holdings=HoldingsThatAdoptOnce),
}
