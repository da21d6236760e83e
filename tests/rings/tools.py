"""Tools for tests of rings: programs that run in part, and a RingService to serve."""

from __future__ import annotations

from dataclasses import dataclass

from services.controller.ring_service import RingServicer
from triptych.rings.program import Program
from triptych.rings.ring import Membership
from triptych.rpc import Service
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2_grpc import add_RingServiceServicer_to_server

REDELIVERY_ROUND_TRIPS = 1
"""One more for a claim of an entry that was delivered before, to count it."""
FULL_PUBLISH_ROUND_TRIPS = 1
NACK_ROUND_TRIPS = 2
"""One more than an ack, because the target is in the slot and not in the state word of a lease."""
REAP_ROUND_TRIPS = 3
"""Look, read, swap, for any number of slots."""


@dataclass
class FixedMember:
    """A worker whose rank and epoch a test says."""

    membership: Membership

    def changed(self, ring: RingName.ValueType) -> None: ...


def first(count: int) -> int:
    """Choose always the first."""
    return 0


def cut_short(program: Program[object], chains: int) -> Program[None]:
    """The first chains of a program, as if its process died or its connection broke after them."""
    results = None
    for _ in range(chains):
        results = yield program.send(results)


def service_of(servicer: RingServicer) -> Service:
    """A RingService, for `start_server`."""
    return add_RingServiceServicer_to_server, servicer, "triptych.v1.RingService"
