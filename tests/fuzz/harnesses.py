"""One function for each place where bytes of another process are read: `one_input(data)` returns, or it is a bug.

What such code may do with bad bytes is raise the errors that its docstring names; anything else that escapes is a
finding. `tests/fuzz/drive.py` runs these coverage-guided (atheris) or with mutated seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from services.controller.generation_service import _sequence_of
from services.worker.running import Running
from tests.fuzz import samples
from tests.fuzz.nasty import Known, Nasty, mutate
from triptych import telemetry
from triptych.errors import InvalidRequest, LeaseLost, RingFull, RingMismatch, SourceCorrupt, TransferFailed
from triptych.media import tensor_files
from triptych.media.decoding import decode, headers
from triptych.media.decoding.headers import AUDIO, IMAGE, VIDEO, Budget, File
from triptych.model import fields, parameters, trees
from triptych.model.description import Description
from triptych.model.inputs import resolve
from triptych.rings import attach, layout, protocol
from triptych.rings.layout import Geometry, Kind, Slot, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.ring import Claimed, dispatch_in, held_of, payload_of
from triptych.transport import codec, room
from triptych.transport.movers import LocalMover
from triptych.transport.shared_memory import SHARED_MEMORY
from triptych.v1 import dispatch_pb2, job_pb2, ring_service_pb2, room_pb2

GEOMETRY = Geometry(slot_count=4, payload_bytes_max=256)
RANK = 3
ROOM_ID = 0x3000001
EPOCH = 7


@dataclass(frozen=True)
class Harness:
    """A place that reads bytes, and inputs to start from."""

    one_input: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    bend: Callable[[random.Random, bytes], bytes] = mutate
    """Makes another input of one that keeps most of its form, so that what is behind the parsing is reached."""


# -- rings ------------------------------------------------------------------------------------------------------------

_memory = bytearray(GEOMETRY.ring_bytes)


def _ring_of(data: bytes) -> MemoryDriver:
    """A ring whose memory begins with `data` and is empty behind."""
    _memory[:] = data[: len(_memory)].ljust(len(_memory), b"\0")
    return MemoryDriver(memoryview(_memory))


def ring_header(data: bytes) -> None:
    """A worker attaches to memory that it is told is a ring."""
    driver = _ring_of(data)
    with contextlib.suppress(RingMismatch):
        swapped = driver.execute(attach.attach(GEOMETRY, dispatch_pb2.RING_PHASE1, EPOCH))
        assert not swapped, "this memory answers in this machine's order"


def ring_memory(data: bytes) -> None:
    """A worker claims from, publishes to, acks and nacks in a ring that others have written anything into."""
    driver = _ring_of(_whole_ring()[: layout.STATES_OFFSET] + data)
    first = lambda count: 0  # noqa: E731
    with contextlib.suppress(LeaseLost):
        claim = driver.execute(protocol.claim(GEOMETRY, RANK, first))
        if claim is not None:
            assert claim.held.rank == RANK
            dispatch_in(claim.payload)
            with contextlib.suppress(LeaseLost):
                driver.execute(protocol.nack(GEOMETRY, claim.held))
            with contextlib.suppress(LeaseLost):
                driver.execute(protocol.ack(GEOMETRY, claim.held))
    with contextlib.suppress(RingFull):
        driver.execute(protocol.publish(GEOMETRY, b"payload", RANK, 0, first))
    for word in driver.execute(protocol.read_words(GEOMETRY)):
        try:
            assert StateWord.unpack(word).pack() == word
        except ValueError:
            assert word % 2**layout.KIND_BITS > Kind.LEASED, "only a kind that there isn't is damage"


def slot(data: bytes) -> None:
    """A slot's bytes, and what a worker looks at in the dispatch before it asks the controller."""
    if len(data) < layout.SLOT_HEADER_BYTES:
        return  # drivers read whole slots
    found = Slot.unpack(data)
    assert 0 <= found.target <= layout.RANK_MAX
    _read_dispatch(dispatch_in(found.payload))


def _read_dispatch(dispatch: dispatch_pb2.Dispatch) -> None:
    lease = ring_service_pb2.Lease(ring=dispatch_pb2.RING_PHASE1, rank=RANK)
    telemetry.trace_id(telemetry.extract(dispatch.traceparent))
    Running(Claimed(lease, dispatch), EPOCH).should_stop()
    with contextlib.suppress(InvalidRequest):
        payload_of(dispatch, dispatch.receiver_rank, GEOMETRY)


def lease(data: bytes) -> None:
    """A lease that a caller says it holds."""
    try:
        said = ring_service_pb2.Lease.FromString(data)
    except DecodeError:
        return
    driver = _ring_of(_whole_ring())
    with contextlib.suppress(InvalidRequest, LeaseLost):
        held = held_of(said, said.ring, GEOMETRY)
        driver.execute(protocol.nack(GEOMETRY, held))


# -- rooms ------------------------------------------------------------------------------------------------------------


def whole_room(data: bytes) -> None:
    """A room as it was fetched: header, manifest, tensors."""
    memory = _aligned(data)
    try:
        manifest = room.parse(memory, ROOM_ID)
    except SourceCorrupt:
        if len(memory) >= room.HEADER_BYTES:
            room.released(memory, ROOM_ID)
        return
    _decode(manifest, memory)


def manifest(data: bytes) -> None:
    """A manifest, by itself, over a room of zeros."""
    try:
        said = room_pb2.Manifest.FromString(data)
    except DecodeError:
        return
    _decode(said, _aligned(bytes(8192)))


def _decode(manifest: room_pb2.Manifest, memory: memoryview) -> None:
    with contextlib.suppress(SourceCorrupt):
        codec.decode(manifest, memory)


def room_ref(data: bytes) -> None:
    """A reference to a room: checked, then read from where it says the room lies on this host."""
    try:
        ref = room_pb2.RoomRef.FromString(data)
    except DecodeError:
        return
    try:
        room.check_ref(ref)
    except InvalidRequest:
        return
    ref.size_bytes = min(ref.size_bytes, 4096)
    with contextlib.suppress(InvalidRequest, TransferFailed):
        _loop().run_until_complete(_local.fetch(ref, memoryview(bytearray(ref.size_bytes))))
        assert Path(ref.arena).parent == SHARED_MEMORY


class _Inline(Executor):
    """Runs at once what a thread would run."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  (delivered)
            done.set_exception(error)
        return done


_local = LocalMover(_Inline())
_loops: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


def _aligned(data: bytes) -> memoryview:
    """`data` in memory that is aligned as a fetched room is."""
    memory = np.empty(len(data) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    part = memory[start : start + len(data)]
    part[:] = np.frombuffer(data, np.uint8)
    return part.data


# -- requests ---------------------------------------------------------------------------------------------------------


def request(data: bytes) -> None:
    """What a client asks for, against a model that takes a bit of everything."""
    try:
        asked = job_pb2.GenerationRequest.FromString(data)
    except DecodeError:
        return
    with contextlib.suppress(InvalidRequest):
        resolve(asked, samples.description())
    with contextlib.suppress(InvalidRequest):
        trees.check_size(asked)
        assert len(list(trees.file_leaves(asked))) <= trees.INPUTS_FILES_MAX
        parameters.parse(trees.gather(asked), Description(samples.description()))
    with contextlib.suppress(InvalidRequest):
        fields.check_deadline(asked, time.time())
    fields.values_of(asked)


def tensor_file(data: bytes) -> None:
    """A safetensors file of a request: what is taken can be written, and is then the same."""
    try:
        found = tensor_files.read(data)
    except ValueError:
        return
    assert tensor_files.read(tensor_files.write(found)) == found
    for one in found.values():
        tensor_files.is_finite(one)


def page_token(data: bytes) -> None:
    """A page token, which clients are told not to look into."""
    with contextlib.suppress(InvalidRequest):
        _sequence_of(data.decode("utf-8", "ignore"))


def picture(data: bytes) -> None:
    """A picture of a request. Pillow's parsers are other people's; what they raise must still be a refusal."""
    with contextlib.suppress(InvalidRequest):
        decode.decode_all([File("image", IMAGE, data)])


def video(data: bytes) -> None:
    """A video of a request: what its headers say, in FFmpeg's hands after that, which may ask for what there isn't."""
    _checked(File("video", VIDEO, data, frames_per_second=24))


def sound(data: bytes) -> None:
    """Sound of a request, or that of a video."""
    _checked(File("sound", AUDIO, data, sample_rate=16_000))


def _checked(file: File) -> None:
    with contextlib.suppress(InvalidRequest, MemoryError):
        headers.check([file])
        assert not list(decode.pieces(file, Budget(), wants_pixels=False))


# -- inputs -----------------------------------------------------------------------------------------------------------


def bent(cls: type[Message], known: Known | None = None) -> Callable[[random.Random, bytes], bytes]:
    """Bends what is a message of this class by its fields, anything else by its bytes."""

    def bend(rng: random.Random, data: bytes) -> bytes:
        try:
            message = cls.FromString(data)
            return Nasty(rng, known).bend(message).SerializeToString()
        except DecodeError:
            return mutate(rng, data)

    return bend


def _bend_room(rng: random.Random, data: bytes) -> bytes:
    """A room whose manifest was bent; the header still says how long it is, and the tensors stand where they stood."""
    try:
        manifest = room.parse(memoryview(data), ROOM_ID)
    except SourceCorrupt:
        return mutate(rng, data)
    body = Nasty(rng, samples.KNOWN).bend(manifest).SerializeToString()
    head = struct.pack("<8sQQ", room.MAGIC, ROOM_ID, len(body)).ljust(room.HEADER_BYTES, b"\0") + body
    return head + data[len(head) :]


def _bend_slot(rng: random.Random, data: bytes) -> bytes:
    if len(data) < layout.SLOT_HEADER_BYTES:
        return mutate(rng, data)
    found = Slot.unpack(data)
    return found._replace(payload=bent(dispatch_pb2.Dispatch)(rng, found.payload)).pack()


def _whole_ring() -> bytes:
    return samples.ring(GEOMETRY, dispatch_pb2.RING_PHASE1, EPOCH, RANK)


def _ring_body() -> bytes:
    return _whole_ring()[layout.STATES_OFFSET :]


HARNESSES: dict[str, Harness] = {
    "ring_header": Harness(ring_header, lambda: [_whole_ring()[:256], b""]),
    "ring_memory": Harness(ring_memory, lambda: [_ring_body(), struct.pack("<4Q", *range(4))]),
    "slot": Harness(slot, lambda: [Slot(5, RANK, one).pack() for one in samples.dispatches()], _bend_slot),
    "lease": Harness(lease, samples.leases, bent(ring_service_pb2.Lease)),
    "whole_room": Harness(whole_room, lambda: samples.rooms(ROOM_ID), _bend_room),
    "manifest": Harness(manifest, samples.manifests, bent(room_pb2.Manifest, samples.KNOWN)),
    "room_ref": Harness(room_ref, samples.room_refs, bent(room_pb2.RoomRef)),
    "request": Harness(request, samples.requests, bent(job_pb2.GenerationRequest)),
    "tensor_file": Harness(tensor_file, samples.tensors),
    "page_token": Harness(page_token, lambda: [b"MTIz", b"LTE=", b"OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"]),
    "picture": Harness(picture, samples.pictures),
    "video": Harness(video, samples.videos),
    "sound": Harness(sound, samples.sounds),
}
"""By name. Those of rings and rooms read what workers write, the others what clients send."""


def names() -> Iterator[str]:
    """Every harness, in the order in which they are run."""
    yield from HARNESSES
