"""What tests of rings need beside the conformance suite: programs run in part, and a RingService to serve."""

from __future__ import annotations

from services.controller.ring_service import RingServicer
from triptych.rings.program import Program
from triptych.rpc import Service
from triptych.v1.ring_service_pb2_grpc import add_RingServiceServicer_to_server


def first(count: int) -> int:
    """Choose without chance."""
    return 0


def cut_short(program: Program[object], chains: int) -> Program[None]:
    """The first chains of a program, as where its process dies or its connection breaks after them."""
    results = None
    for _ in range(chains):
        results = yield program.send(results)


def service_of(servicer: RingServicer) -> Service:
    """A RingService, for `start_server`."""
    return add_RingServiceServicer_to_server, servicer, "triptych.v1.RingService"
