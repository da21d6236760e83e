"""What a worker shows to the owner of a room that it fetches: the room's capability, and nothing that it calls with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych import rpc
from triptych.errors import RoomGone, Unauthenticated
from triptych.security import tokens
from triptych.security.auth import OwnToken, Security
from triptych.security.certificates import Certificates
from triptych.security.tokens import Tokens
from triptych.transport import codec
from triptych.transport.arena import Arena
from triptych.transport.fetcher import open_fetcher
from triptych.transport.movers import read_room
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc
from triptych.v1.room_pb2 import RoomRef
from triptych_client import authority

ROOM = 7 << 36
ARENA_BYTES = 2**20


class Owner(pb_grpc.WorkerServiceServicer):
    """A compromised worker: serves its rooms, and writes down what it is shown."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.shown: list[tuple[str, str]] = []
        self.count = 0

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Any) -> AsyncIterator[pb.FetchRoomResponse]:
        self.count += 1
        self.shown += [(key, str(value)) for key, value in context.invocation_metadata()]
        for chunk in read_room(self._arena, request.room):
            yield pb.FetchRoomResponse(chunk=chunk)

    @property
    def service(self) -> rpc.Service:
        return (pb_grpc.add_WorkerServiceServicer_to_server, self, "triptych.v1.WorkerService")


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(ARENA_BYTES) as arena:
        yield arena


def put(arena: Arena, address: str) -> RoomRef:
    encoded = codec.encode({"x": np.arange(1000, dtype=np.uint8)}, "job")
    ref = arena.put(ROOM, encoded.manifest, encoded.buffers)
    ref.owner_rank = 7
    ref.owner_address = address
    return ref


@pytest.mark.parametrize("kind", ["tokens", "tls", "both"])
async def test_a_rooms_owner_sees_no_token(arena: Arena, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "tokens.toml"
    token = tokens.add(file, "transformers", ["transformer"])
    authority.init(tmp_path / "certs", ["127.0.0.1"])

    def security(role: str) -> Security:
        certificates = Certificates(tmp_path / "certs" / role) if kind != "tokens" else None
        return Security(certificates, Tokens(file) if kind != "tls" else None, OwnToken(token))

    owner = Owner(arena)
    server = await rpc.start_server("127.0.0.1:0", [owner.service], security=security("encoder"))
    with closing(open_fetcher(arena, None, security("transformer"), forced="rpc")) as fetcher:
        ref = put(arena, server.address)
        fetched = await fetcher.fetch(ref)
        assert bytes(fetched.buffer[-1000:]) == bytes(arena.read(ROOM, ref.size_bytes - 1000, 1000))
        assert owner.count == 1
        assert "authorization" not in dict(owner.shown)
        assert not any(token in value for _key, value in owner.shown)
        wrong, absent = RoomRef(), RoomRef()
        wrong.CopyFrom(ref)
        absent.CopyFrom(ref)
        wrong.capability, absent.room_id = b"x" * 16, ROOM + 1
        for other in (wrong, absent):
            with pytest.raises(RoomGone, match="was released, or never was in this arena"):
                await fetcher.fetch(other)
    await server.stop(0)


async def test_a_capability_is_no_certificate(arena: Arena, tmp_path: Path) -> None:
    """Where there are certificates a room is for those who have one, on either port."""
    file = tmp_path / "tokens.toml"
    tokens.add(file, "alice", ["submit"])
    authority.init(tmp_path / "certs", ["127.0.0.1"])
    owner = Owner(arena)
    guarded = Security(Certificates(tmp_path / "certs" / "encoder"), Tokens(file))
    server = await rpc.start_server("127.0.0.1:0", [owner.service], security=guarded, client_address="127.0.0.1:0")
    anybody = tmp_path / "anybody"
    anybody.mkdir()
    (anybody / "ca.crt").write_bytes((tmp_path / "certs" / "client" / "ca.crt").read_bytes())
    ref = put(arena, server.address)
    async with rpc.open_channel(server.client_address, Security(Certificates(anybody))) as channel:
        stream = pb_grpc.WorkerServiceStub(channel).FetchRoom(pb.FetchRoomRequest(room=ref), timeout=10)
        with pytest.raises(Unauthenticated):
            await rpc.translate(anext(aiter(stream)))
    assert owner.count == 0
    await server.stop(0)
