"""Hand-off of a room between two processes, by mover and size, as a ratio to a memcpy of the same bytes.

    python -m benchmarks.bench_handoff

`put` is the owner's copy into its arena with its checksum; `fetch` is the reader's copy out of it, into fresh memory,
with the checksum verified. `memcpy` copies the same bytes between warm memory in the reader, in the same run.
All are medians. The owner is a process of its own, on the same host: what a network adds is not in here.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import numpy as np

from triptych import rpc
from triptych.errors import MissingExtra, WrongState
from triptych.transport import codec
from triptych.transport.arena import Arena
from triptych.transport.fetcher import Fetcher, open_fetcher
from triptych.transport.mooncake_engine import MooncakeEngine
from triptych.transport.movers import read_room
from triptych.v1 import room_pb2, worker_service_pb2, worker_service_pb2_grpc

SIZES_BYTES = (2**20, 8 * 2**20, 64 * 2**20)
MOVERS = ("local", "mooncake", "rpc")
REPEATS = 9
"""Odd, so that the median is one of them; the first, which connects and faults pages in, is left out."""
ARENA_BYTES = 160 * 2**20
"""Two of the largest rooms."""
OWNER_TIMEOUT_S = 60
"""The owner's start, or its making of a room, on a busy machine."""


class Row(NamedTuple):
    """One line of the table."""

    size_bytes: int
    mover: str
    put_s: float
    fetch_s: float
    memcpy_s: float

    @property
    def ratio(self) -> float:
        """The whole hand-off, in memcpys of the same bytes."""
        return (self.put_s + self.fetch_s) / self.memcpy_s


class Owner(worker_service_pb2_grpc.WorkerServiceServicer):
    """The other process: puts a room for each line on stdin (`SIZE`), after it released the last."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    async def FetchRoom(
        self, request: worker_service_pb2.FetchRoomRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[worker_service_pb2.FetchRoomResponse]:
        """As every worker serves it."""
        for chunk in read_room(self._arena, request.room):
            yield worker_service_pb2.FetchRoomResponse(chunk=chunk)


async def own() -> None:
    """Serve rooms until stdin ends."""
    with Arena(ARENA_BYTES) as arena:
        engine = start_engine(arena)
        servicer = Owner(arena)  # type: ignore[abstract]  # the other methods aren't called
        add = worker_service_pb2_grpc.add_WorkerServiceServicer_to_server
        server = await rpc.start_server("127.0.0.1:0", [(add, servicer, "triptych.v1.WorkerService")])
        session = "" if engine is None else engine.session
        room_id = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            arena.release(room_id)
            room_id += 1
            values = {"latents": np.random.default_rng(room_id).integers(0, 256, int(line), np.uint8)}
            started = time.perf_counter()
            encoded = codec.encode(values, "job")
            ref = arena.put(room_id, encoded.manifest, encoded.buffers)
            put_s = time.perf_counter() - started
            ref.owner_rank, ref.owner_address, ref.mooncake_session = 1, server.address, session
            print(json.dumps({"put_s": put_s, "ref": ref.SerializeToString().hex()}), flush=True)
        await server.stop(0)
        if engine is not None:
            engine.close()


async def measure() -> list[Row]:
    """Run every mover at every size."""
    command = [sys.executable, "-m", "benchmarks.bench_handoff", "--owner"]
    owner = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin is not None
    with Arena(ARENA_BYTES) as arena:
        engine = start_engine(arena)
        rows = []
        for size_bytes in SIZES_BYTES:
            memcpy_s = time_memcpy(size_bytes)
            for mover in [name for name in MOVERS if name != "mooncake" or engine is not None]:
                fetcher = open_fetcher(arena, engine, forced=mover)
                times = [await hand_off(owner, fetcher, size_bytes) for _repeat in range(1 + REPEATS)][1:]
                fetcher.close()
                put_s, fetch_s = (statistics.median(column) for column in zip(*times, strict=True))
                rows.append(Row(size_bytes, mover, put_s, fetch_s, memcpy_s))
        if engine is not None:
            engine.close()
    owner.stdin.close()
    await asyncio.wait_for(owner.wait(), OWNER_TIMEOUT_S)
    return rows


def start_engine(arena: Arena) -> MooncakeEngine | None:
    """Mooncake with the arena registered; None, and a sentence on stderr, where it can't be had here."""
    try:
        engine = MooncakeEngine("127.0.0.1")
    except (MissingExtra, WrongState) as error:
        print(f"without the mover mooncake: {error}", file=sys.stderr)
        return None
    engine.register(arena.base_address, arena.size_bytes)
    return engine


async def hand_off(owner: asyncio.subprocess.Process, fetcher: Fetcher, size_bytes: int) -> tuple[float, float]:
    """Have the owner put a room, fetch it; the seconds of both."""
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write(b"%d\n" % size_bytes)
    answer = json.loads(await asyncio.wait_for(owner.stdout.readline(), OWNER_TIMEOUT_S))
    fetched = await fetcher.fetch(room_pb2.RoomRef.FromString(bytes.fromhex(answer["ref"])))
    return answer["put_s"], fetched.seconds


def time_memcpy(size_bytes: int) -> float:
    """Seconds that a copy between warm memory takes."""
    source, target = np.ones(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
    seconds = []
    for _repeat in range(REPEATS):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print the table."""
    print(f"{'size':>7}  {'mover':<9}{'put':>10}{'fetch':>11}{'memcpy':>11}{'hand-off / memcpy':>20}")
    for row in asyncio.run(measure()):
        print(
            f"{row.size_bytes >> 20:>3} MiB  {row.mover:<9}{row.put_s * 1e3:>7.2f} ms{row.fetch_s * 1e3:>8.2f} ms"
            f"{row.memcpy_s * 1e3:>8.2f} ms{row.ratio:>19.1f}×"
        )


if __name__ == "__main__":
    if "--owner" in sys.argv:
        asyncio.run(own())
    else:
        main()
