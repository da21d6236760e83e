"""A process that owns an arena and serves its rooms by every mover. Takes commands on stdin, answers with JSON lines.

owner.py [HOST PROTOCOL DEVICE]: where and how Mooncake is reached; 127.0.0.1, by TCP, unless said otherwise.

put SIZE SEED   -> {"ref": hex of a RoomRef}     one tensor of SIZE random bytes
release ROOM    -> {"released": true}
quit            (or the end of stdin) closes all and leaves
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import grpc
import numpy as np

from tests import needs
from triptych import rpc
from triptych.transport import codec
from triptych.transport.arena import Arena
from triptych.transport.mooncake_engine import open_engine
from triptych.transport.movers import read_room
from triptych.v1 import worker_service_pb2, worker_service_pb2_grpc

ARENA_BYTES = 96 * 2**20


class Servicer(worker_service_pb2_grpc.WorkerServiceServicer):
    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    async def FetchRoom(
        self, request: worker_service_pb2.FetchRoomRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_service_pb2.FetchRoomResponse]:
        for chunk in read_room(self._arena, request.room):
            yield worker_service_pb2.FetchRoomResponse(chunk=chunk)


async def main(host: str = "127.0.0.1", protocol: str = "tcp", device: str = "") -> None:
    with Arena(ARENA_BYTES) as arena:
        engine = None if needs.without_mooncake() else open_engine(arena, host, protocol, device)
        name = "triptych.v1.WorkerService"
        add = worker_service_pb2_grpc.add_WorkerServiceServicer_to_server
        server = await rpc.start_server("127.0.0.1:0", [(add, Servicer(arena), name)])
        say({"arena": str(arena.path), "protocol": engine.protocol if engine else ""})
        room_id = 7 << 36
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, *arguments = line.split()
            if command == "quit":
                break
            if command == "release":
                say({"released": arena.release(int(arguments[0]))})
                continue
            size, seed = map(int, arguments)
            room_id += 1
            values = {"x": np.random.default_rng(seed).integers(0, 256, size, np.uint8)}
            encoded = codec.encode(values, "job")
            ref = arena.put(room_id, encoded.manifest, encoded.buffers)
            ref.owner_rank = 7
            ref.owner_address = server.address
            ref.mooncake_session = engine.session if engine else ""
            say({"ref": ref.SerializeToString().hex()})
        await server.stop(0)
        if engine is not None:
            engine.close()


def say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
