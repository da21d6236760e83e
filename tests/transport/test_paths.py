"""A reference to a room opens an arena's file in /dev/shm and no other, even if it is hostile."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from triptych import rpc
from triptych.errors import InvalidRequest, SourceCorrupt, TransferFailed
from triptych.transport.fetcher import Fetcher
from triptych.transport.movers import LocalMover, RpcMover
from triptych.transport.shared_memory import NAME_PREFIX, SHARED_MEMORY, host_id
from triptych.v1 import room_pb2, worker_service_pb2

SECRET = b"secret" * 100
SIZE_BYTES = 128


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    """A name that an arena may have, and that is gone at the end."""
    path = SHARED_MEMORY / f"{NAME_PREFIX}0-{secrets.token_hex(8)}"
    yield path
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def ref_to(arena: str) -> room_pb2.RoomRef:
    return room_pb2.RoomRef(room_id=1, host_id=host_id(), arena=arena, size_bytes=SIZE_BYTES, xxh3_128=bytes(16))


@pytest.mark.parametrize(
    "arena",
    [
        "{secret}",
        "/dev/shm/../{secret}",
        "/dev/shm/triptych-arena-/../../{secret}",
        "/dev/shm/./triptych-arena-/../{secret}",
        "//dev/shm/triptych-arena-",
        "/dev/shm/triptych-arena-\0",
        "/dev/shm/triptych-arena-" + "x" * 300,
        "/dev/shm",
        "/dev/shm/",
        "dev/shm/triptych-arena-1",
        "",
        "\0",
        "/proc/self/fd/0",
        "file:///dev/shm/triptych-arena-1",
    ],
)
async def test_paths_that_lead_elsewhere(arena: str, tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    into = bytearray(SIZE_BYTES)
    ref = ref_to(arena.format(secret=secret))
    with pytest.raises((InvalidRequest, TransferFailed)):
        await LocalMover(executor).fetch(ref, memoryview(into))
    assert not any(into)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "device"])
async def test_what_only_has_an_arenas_name(
    kind: str, place: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """A pipe would keep its reader waiting indefinitely."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    make: dict[str, Callable[[], None]] = {
        "link": lambda: os.symlink(secret, place),
        "device": lambda: os.symlink("/dev/zero", place),
        "pipe": lambda: os.mkfifo(place),
        "folder": lambda: os.mkdir(place),
    }
    make[kind]()
    into = bytearray(SIZE_BYTES)
    with pytest.raises(TransferFailed):
        await LocalMover(executor).fetch(ref_to(str(place)), memoryview(into))
    assert not any(into)


class Hostile(grpc.GenericRpcHandler):
    """Answers every call with the messages that it was made with, as they are."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(request: bytes, context: object) -> object:
            for one in self._answers:
                yield one

        return grpc.unary_stream_rpc_method_handler(answer)  # type: ignore[arg-type]


def chunk(data: bytes) -> bytes:
    return worker_service_pb2.FetchRoomResponse(chunk=data).SerializeToString()


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b""],
        [b"\xff\xff\xff"],
        [chunk(bytes(SIZE_BYTES - 1))],
        [chunk(bytes(SIZE_BYTES + 1))],
        [chunk(bytes(SIZE_BYTES)), chunk(b"x")],
        [chunk(bytes(SIZE_BYTES)), b"\xff\xff\xff"],
        [chunk(b"x" * SIZE_BYTES)],
    ],
    ids=lambda answers: " + ".join(str(len(one)) for one in answers) or "nothing",
)
async def test_owners_that_answer_anything(answers: list[bytes], executor: ThreadPoolExecutor) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Hostile(answers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ref = ref_to("")
    ref.host_id, ref.owner_address = "another host", f"127.0.0.1:{port}"
    try:
        with pytest.raises((TransferFailed, SourceCorrupt)):
            await Fetcher([RpcMover(rpc.open_channel)], executor).fetch(ref)
    finally:
        await server.stop(0)
