"""The movers: three ways to read a room from its owner's arena. All copy it into memory that the reader owns.

| mover | reaches | how |
| --- | --- | --- |
| `local` | the same `/dev/shm` | one `pread` of the owner's arena: a copy in the kernel, no socket |
| `mooncake` | any host with Mooncake | a one-sided read into a borrowed part of the reader's own, registered arena |
| `rpc` | any worker | `FetchRoom`, a stream of 1 MiB chunks |

`local` reads the file and doesn't map it: a mapping would keep a dead owner's memory in use, and touching a page of a
file that was cut short kills the process. Movers don't verify; `triptych.transport.fetcher` does.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np

from triptych import addresses
from triptych.errors import ArenaFull, InvalidRequest, RoomGone, TransferFailed
from triptych.rpc import error_from
from triptych.transport.arena import Arena, no_room
from triptych.transport.mooncake_engine import MooncakeEngine
from triptych.transport.shared_memory import NAME_PREFIX, SHARED_MEMORY, host_id
from triptych.v1 import room_pb2, worker_service_pb2, worker_service_pb2_grpc

CHUNK_BYTES_MAX = 2**20
"""Most bytes in one message of FetchRoom: a quarter of gRPC's default limit, and enough to hide its overhead."""


class Mover(Protocol):
    """A way to read rooms."""

    name: str
    protocol: str
    """The protocol that carries the bytes, for people: `shm`, `tcp`, `rdma` or `grpc`."""

    def accepts(self, ref: room_pb2.RoomRef) -> bool:
        """Whether this mover can reach the room, by its reference."""
        ...

    async def fetch(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        """Read the whole room into `into`, which has its size.

        After a cancellation a blocking read may go on writing to `into`, so never use that memory again. Raises
        TransferFailed if this mover can't reach the room, RoomGone if the owner doesn't have it.
        """
        ...


class LocalMover:
    """Reads the owner's arena file on the same host."""

    name = "local"
    protocol = "shm"

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._host_id = host_id()

    def accepts(self, ref: room_pb2.RoomRef) -> bool:
        """Whether the room is in this host's shared memory."""
        return ref.host_id == self._host_id

    async def fetch(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        """See `Mover`. Also raises InvalidRequest for a path that isn't an arena's."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._read, ref, into)

    def _read(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        path = Path(ref.arena)
        if path.parent != SHARED_MEMORY or not path.name.startswith(NAME_PREFIX):
            raise InvalidRequest("room.arena", ref.arena, f"{SHARED_MEMORY}/{NAME_PREFIX}…")
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL
            raise TransferFailed(f"{path}: {error}") from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise TransferFailed(f"{path} is no file")
            position = 0
            while position < len(into):
                count = os.preadv(file, [into[position:]], ref.offset_bytes + position)
                if count == 0:
                    raise TransferFailed(f"{path} ends before the room does")
                position += count
        except OSError as error:
            raise TransferFailed(f"{path}: {error.strerror}") from error
        finally:
            os.close(file)


class MooncakeMover:
    """Reads the owner's arena through Mooncake. `arena` is the reader's own and registered with `engine`."""

    name = "mooncake"

    def __init__(self, engine: MooncakeEngine, arena: Arena, executor: Executor) -> None:
        self._engine = engine
        self.protocol = engine.protocol
        self._arena = arena
        self._executor = executor

    def accepts(self, ref: room_pb2.RoomRef) -> bool:
        """Whether the owner has a Mooncake session."""
        return bool(ref.mooncake_session)

    async def fetch(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        """See `Mover`. A full arena is a TransferFailed, so that another mover takes over."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._read, ref, into)

    def _read(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        peer_address = ref.base_address + ref.offset_bytes
        if peer_address + ref.size_bytes >= 2**64:
            raise InvalidRequest("room.base_address", ref.base_address, "an address of 64 bits")
        try:
            with self._arena.borrow(ref.size_bytes) as (offset, part):
                self._engine.read(ref.mooncake_session, self._arena.base_address + offset, peer_address, ref.size_bytes)
                # numpy's copy releases the GIL, memoryview's doesn't.
                np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(part, np.uint8))
        except (ArenaFull, InvalidRequest) as error:
            raise TransferFailed(f"no space to receive in: {error}") from error


class RpcMover:
    """Streams the room from the owner's WorkerService, over a channel made by `open_channel(host_port)`."""

    name = "rpc"
    protocol = "grpc"

    def __init__(self, open_channel: Callable[[str], grpc.aio.Channel]) -> None:
        self._open_channel = open_channel

    def accepts(self, ref: room_pb2.RoomRef) -> bool:
        """Whether the owner has an address."""
        return bool(ref.owner_address)

    async def fetch(self, ref: room_pb2.RoomRef, into: memoryview) -> None:
        """See `Mover`. Also raises InvalidRequest for an address that isn't one."""
        position = 0
        address = str(addresses.parse("room.owner_address", ref.owner_address))
        request = worker_service_pb2.FetchRoomRequest(room=ref)
        try:
            async with self._open_channel(address) as channel:
                async for response in worker_service_pb2_grpc.WorkerServiceStub(channel).FetchRoom(request):
                    if response is None:  # gRPC's way to say that the bytes are no message
                        raise TransferFailed(f"{ref.owner_address} sends what is no chunk")
                    end = position + len(response.chunk)
                    if end > len(into):
                        raise TransferFailed(f"{ref.owner_address} sends more than the room's {len(into)} bytes")
                    into[position:end] = response.chunk
                    position = end
        except grpc.aio.AioRpcError as error:
            reason = error_from(error)
            if isinstance(reason, RoomGone | InvalidRequest):
                raise reason from error
            raise TransferFailed(f"{ref.owner_address}: {reason}") from error
        if position != len(into):
            raise TransferFailed(f"{ref.owner_address} sent {position} of the room's {len(into)} bytes")


def read_room(arena: Arena, ref: room_pb2.RoomRef) -> Iterator[bytes]:
    """The pieces of a room, for FetchRoom.

    Raises RoomGone for a room that isn't there or is released meanwhile, and without its capability, so that callers
    can't find out which rooms exist; InvalidRequest for a reference that differs from the room.
    """
    held = arena.held(ref.room_id)
    if not hmac.compare_digest(ref.capability, held.capability):
        raise no_room(ref.room_id)
    if (ref.offset_bytes, ref.size_bytes) != (held.offset_bytes, held.size_bytes):
        accepted = f"the room's own, {held.offset_bytes} and {held.size_bytes}"
        raise InvalidRequest("room.offset_bytes, room.size_bytes", (ref.offset_bytes, ref.size_bytes), accepted)
    for start in range(0, held.size_bytes, CHUNK_BYTES_MAX):
        yield arena.read(ref.room_id, start, CHUNK_BYTES_MAX)
