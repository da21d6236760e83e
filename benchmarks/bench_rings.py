"""Operations per second of the leased rings, beside the nearest thing that promises nothing.

    memory   the ring in process               floor: an asyncio.Queue
    rpc      the ring through RingService      floor: a gRPC call of the same size that does nothing

One client, one call after another, so the numbers are of latency. Ratios are of this run and this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc

from services.controller.ring_service import RingServicer
from triptych.rings.access import RpcRing
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Ring
from triptych.rpc import open_channel, start_server
from triptych.v1 import ring_service_pb2 as pb
from triptych.v1.dispatch_pb2 import RING_PHASE1, Dispatch
from triptych.v1.ring_service_pb2_grpc import RingServiceStub, add_RingServiceServicer_to_server

BATCH = 64
"""Entries in the ring at most: half of it."""
SECONDS_EACH = 0.5
"""Measured time for each line, so that the whole takes a few seconds."""
DISPATCH = Dispatch(job_id="0" * 32, traceparent="0" * 55)
DISPATCH.room.xxh3_128 = bytes(16)
DISPATCH.room.arena = "/dev/shm/triptych-arena-of-usual-length"


class Line(NamedTuple):
    """One measured operation."""

    driver: str
    operation: str
    per_second: float
    floor_per_second: float


class _Nothing(RingServicer):
    """The floor: takes a dispatch, does nothing."""

    async def Publish(self, request: pb.PublishRequest, context: object) -> pb.PublishResponse:
        """Answer."""
        return pb.PublishResponse(ticket=1)


async def main() -> None:
    """Print the table."""
    print(f"{'ring':8}{'operation':12}{'per second':>12}{'floor':>12}{'of floor':>10}")
    for line in [*await _memory_lines(), *await _rpc_lines()]:
        ratio = line.per_second / line.floor_per_second
        print(f"{line.driver:8}{line.operation:12}{line.per_second:12,.0f}{line.floor_per_second:12,.0f}{ratio:10.3f}")


async def _memory_lines() -> list[Line]:
    queue: asyncio.Queue[Dispatch] = asyncio.Queue(BATCH)
    put_s, get_s, count = 0.0, 0.0, 0
    while put_s + get_s < SECONDS_EACH:
        put_s += await _seconds(lambda: queue.put(DISPATCH))
        get_s += await _seconds(queue.get)
        count += BATCH
    floors = {"publish": count / put_s, "claim": count / get_s, "ack": count / get_s, "empty claim": count / get_s}
    return await lines("memory", MemoryRing(RING_PHASE1, 1, attempts_max=3), floors)


async def _rpc_lines() -> list[Line]:
    async with _served(_Nothing([], lambda rank: None)) as channel:
        request = pb.PublishRequest(ring=RING_PHASE1, dispatch=DISPATCH)
        publish: Callable[[pb.PublishRequest], Awaitable[Any]] = RingServiceStub(channel).Publish
        spent_s, count = 0.0, 0
        while spent_s < SECONDS_EACH:
            spent_s += await _seconds(lambda: publish(request))
            count += BATCH
    floors = dict.fromkeys(("publish", "claim", "ack", "empty claim"), count / spent_s)
    host = MemoryRing(RING_PHASE1, 1, attempts_max=3)
    async with _served(RingServicer([host], lambda rank: None)) as channel:
        return await lines("rpc", RpcRing(channel, RING_PHASE1), floors)


@asynccontextmanager
async def _served(servicer: RingServicer) -> AsyncIterator[grpc.aio.Channel]:
    service = (add_RingServiceServicer_to_server, servicer, "triptych.v1.RingService")
    server = await start_server("127.0.0.1:0", [service])
    channel = open_channel(f"127.0.0.1:{server.port}")
    yield channel
    await channel.close()
    await server.stop(0)


async def lines(driver: str, ring: Ring, floors: dict[str, float]) -> list[Line]:
    """Fill and empty the ring in batches; the time of each operation is summed over them."""
    spent_s = dict.fromkeys(floors, 0.0)
    count = 0
    while sum(spent_s.values()) < SECONDS_EACH * len(floors):
        leases: list[pb.Lease] = []

        async def claim(leases: list[pb.Lease] = leases) -> None:
            claimed = await ring.claim(1)
            assert claimed is not None
            leases.append(claimed.lease)

        async def ack(leases: list[pb.Lease] = leases) -> None:
            await ring.ack(leases.pop())

        spent_s["publish"] += await _seconds(lambda: ring.publish(DISPATCH, 0))
        spent_s["claim"] += await _seconds(claim)
        spent_s["ack"] += await _seconds(ack)
        spent_s["empty claim"] += await _seconds(lambda: ring.claim(1))
        count += BATCH
    return [Line(driver, operation, count / spent_s[operation], floor) for operation, floor in floors.items()]


async def _seconds(call: Callable[[], Awaitable[Any]]) -> float:
    """Wall time of one batch of calls."""
    before_s = time.perf_counter()
    for _ in range(BATCH):
        await call()
    return time.perf_counter() - before_s


if __name__ == "__main__":
    asyncio.run(main())
