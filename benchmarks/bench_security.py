"""What it costs to ask who calls: calls and bytes in the clear, with a token, over mutual TLS, and with both.

    python -m benchmarks.bench_security

`GetWorker` is a call that does next to nothing; `FetchRoom` streams a room of 64 MiB by the mover `rpc`. Server and
client are one process on one core each way, so the figures are for ratios; all four ways take turns in one run.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from triptych import rpc
from triptych.security import auth, tokens
from triptych.transport import codec
from triptych.transport.arena import Arena
from triptych.transport.movers import read_room
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc
from triptych.v1.room_pb2 import RoomRef
from triptych_client import authority

ROOM_BYTES = 64 * 2**20
CALLS = 300
"""Calls in one turn, one after another."""
TURNS = 5
"""Odd, so that the median is one of them."""


class Row(NamedTuple):
    """One way, measured: medians over the turns."""

    way: str
    call_s: float
    room_s: float
    channel_s: float
    """A new channel's first call: connection and handshake."""


class Server(pb_grpc.WorkerServiceServicer):
    """One room, and a call that does nothing."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        """Answers at once."""
        return pb.GetWorkerResponse()

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Any) -> Any:
        """As a worker's."""
        for chunk in read_room(self._arena, request.room):
            yield pb.FetchRoomResponse(chunk=chunk)


def ways(folder: Path) -> Mapping[str, tuple[auth.Security, auth.Security]]:
    """The server's and the client's side of each way."""
    authority.init(folder / "certs", ["127.0.0.1"])
    file = str(folder / "tokens.toml")
    token = tokens.add(Path(file), "alice", ["admin"])
    server, client = str(folder / "certs" / "controller"), str(folder / "certs" / "admin")
    return {
        "nobody is asked": (auth.OPEN, auth.OPEN),
        "token": (auth.open_security("", file), auth.open_security("", "", token=token)),
        "mutual TLS": (auth.open_security(server, ""), auth.open_security(client, "")),
        "mutual TLS and token": (auth.open_security(server, file), auth.open_security(client, "", token=token)),
    }


async def measure() -> list[Row]:
    """All ways in turns."""
    folder = Path(tempfile.mkdtemp(prefix="triptych-bench-"))
    samples: dict[str, list[Row]] = {}
    try:
        async with AsyncExitStack() as stack:
            arena = stack.enter_context(Arena(ROOM_BYTES + 2**20))
            encoded = codec.encode({"x": np.zeros(ROOM_BYTES, np.uint8)}, "job")
            room = arena.put(1, encoded.manifest, encoded.buffers)
            room.owner_rank = 1
            service = (pb_grpc.add_WorkerServiceServicer_to_server, Server(arena), "triptych.v1.WorkerService")
            servers = {}
            for name, (server_side, client_side) in ways(folder).items():
                server = await rpc.start_server("127.0.0.1:0", [service], security=server_side)
                stack.push_async_callback(server.stop, 0)
                servers[name] = server.address, client_side
            for _turn in range(TURNS):
                for name, (address, client_side) in servers.items():
                    samples.setdefault(name, []).append(await _one(name, address, client_side, room))
    finally:
        shutil.rmtree(folder)
    return [Row(name, *(statistics.median(column) for column in zip(*(row[1:] for row in rows), strict=True)))
            for name, rows in samples.items()]  # fmt: skip


async def _one(name: str, address: str, security: auth.Security, room: RoomRef) -> Row:
    async with rpc.open_channel(address, security) as channel:
        stub = pb_grpc.WorkerServiceStub(channel)
        first_s = await _timed(lambda: stub.GetWorker(pb.GetWorkerRequest()))

        async def calls() -> None:
            for _ in range(CALLS):
                await stub.GetWorker(pb.GetWorkerRequest())

        return Row(name, await _timed(calls) / CALLS, await _timed(lambda: _fetch(stub, room)), first_s)


async def _fetch(stub: Any, room: RoomRef) -> None:
    received = sum([len(r.chunk) async for r in stub.FetchRoom(pb.FetchRoomRequest(room=room))])
    assert received == room.size_bytes


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    start_s = time.perf_counter()
    await work()
    return time.perf_counter() - start_s


def main() -> None:
    """Print the table."""
    rows = asyncio.run(measure())
    base = rows[0]
    print(f"gRPC {grpc.__version__}, medians of {TURNS} turns; × is over the first line")
    print("| way | call | | room of 64 MiB | | first call of a channel |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        call, room = f"{row.call_s * 1e6:.0f} µs", f"{row.room_s * 1e3:.0f} ms"
        ratios = f"{row.call_s / base.call_s:.2f}×", f"{row.room_s / base.room_s:.2f}×"
        print(f"| {row.way} | {call} | {ratios[0]} | {room} | {ratios[1]} | {row.channel_s * 1e3:.1f} ms |")


if __name__ == "__main__":
    main()
