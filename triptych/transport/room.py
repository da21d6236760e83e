"""The bytes of a room: header, manifest, tensors.

    0        magic, 8 bytes
    8        room id, u64 little-endian
    16       manifest length in bytes, u64 little-endian
    24       zeros up to 64
    64       manifest (protobuf)
    …        zeros up to a multiple of 64, then each tensor at a multiple of 64, zeros between, exact sizes

The manifest contains the offsets, and its length depends on their values. So the first tensor's place is computed from
the longest encoding of each offset, and a few zeros follow the manifest.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.transport.allocator import align_up
from triptych.v1 import room_pb2

HEADER_BYTES = 64
"""One cache line, so that the manifest is aligned."""
MAGIC = b"TRIROOM1"
"""First bytes of every room. The digit is the layout's version."""
MANIFEST_BYTES_MAX = 64 * 2**20
"""Longest manifest: far more than texts and small values need. protobuf's own limit is 2 GiB."""
ROOM_BYTES_MAX = 64 * 2**30
"""Largest room: a thousand times the largest known hand-off (tens of MB), below any host's memory."""
_OFFSET_BYTES_MAX = 1 + 10 + 4
"""Most bytes that an `offset_bytes` adds to a manifest: tag, 64-bit varint, and a longer length of its message."""
_HEADER = struct.Struct("<8sQQ")


def lay_out(
    room_id: int, manifest: room_pb2.Manifest, buffers: Sequence[memoryview]
) -> tuple[list[bytes | memoryview], int]:
    """The pieces of a room in order, including gaps, and their total size, for a manifest and its tensors' bytes.

    There is one buffer for each entry of `manifest.tensors`, whose `offset_bytes` and `size_bytes` are filled in place.
    No tensor is copied. Raises InvalidRequest when the manifest is too long.
    """
    for tensor, buffer in zip(manifest.tensors, buffers, strict=True):
        tensor.offset_bytes = 0
        tensor.size_bytes = buffer.nbytes
    first = end = align_up(HEADER_BYTES + manifest.ByteSize() + _OFFSET_BYTES_MAX * len(buffers))
    pieces: list[bytes | memoryview] = []
    for tensor, buffer in zip(manifest.tensors, buffers, strict=True):
        if buffer.nbytes:  # a tensor without bytes has no place: its aligned place could be after the end
            tensor.offset_bytes = align_up(end)
            pieces += [bytes(tensor.offset_bytes - end), buffer]
            end = tensor.offset_bytes + buffer.nbytes
    body = manifest.SerializeToString(deterministic=True)
    if len(body) > MANIFEST_BYTES_MAX:
        raise InvalidRequest("manifest length in bytes", len(body), f"at most {MANIFEST_BYTES_MAX}")
    head = _HEADER.pack(MAGIC, room_id, len(body)).ljust(HEADER_BYTES, b"\0") + body
    assert len(head) <= first
    return [head.ljust(first, b"\0"), *(piece for piece in pieces if len(piece))], end


def parse(room: memoryview, room_id: int) -> room_pb2.Manifest:
    """The manifest of a room whose checksum was right.

    Raises SourceCorrupt if these bytes aren't room `room_id`. `codec.decode` checks the offsets in the manifest.
    """
    if len(room) < HEADER_BYTES:
        raise SourceCorrupt(f"room {room_id:#x}: {len(room)} bytes are less than a header")
    magic, found_id, manifest_bytes = _HEADER.unpack_from(room)
    if magic != MAGIC or found_id != room_id:
        raise SourceCorrupt(f"room {room_id:#x}: its header says {magic!r}, room {found_id:#x}")
    if not manifest_bytes <= min(len(room) - HEADER_BYTES, MANIFEST_BYTES_MAX):
        raise SourceCorrupt(f"room {room_id:#x}: a manifest of {manifest_bytes} bytes in a room of {len(room)}")
    try:
        return room_pb2.Manifest.FromString(bytes(room[HEADER_BYTES : HEADER_BYTES + manifest_bytes]))
    except DecodeError as error:
        raise SourceCorrupt(f"room {room_id:#x}: its manifest can't be parsed ({error})") from error


def released(room: memoryview, room_id: int) -> bool:
    """Whether the owner has released the room: the header is wiped, or another room's."""
    magic, found_id, _manifest_bytes = _HEADER.unpack_from(room)
    return (magic == MAGIC and found_id != room_id) or not any(room[:HEADER_BYTES])


def check_ref(ref: room_pb2.RoomRef) -> None:
    """Raise InvalidRequest for an impossible reference, before memory is taken for it."""
    if not HEADER_BYTES <= ref.size_bytes <= ROOM_BYTES_MAX:
        raise InvalidRequest("room.size_bytes", ref.size_bytes, f"{HEADER_BYTES} to {ROOM_BYTES_MAX}")
    if ref.offset_bytes != align_up(ref.offset_bytes) or ref.offset_bytes >= 2**63:
        raise InvalidRequest("room.offset_bytes", ref.offset_bytes, "a multiple of 64 below 2^63")
    if len(ref.xxh3_128) != 16:
        raise InvalidRequest("room.xxh3_128", ref.xxh3_128, "16 bytes")
    if not ref.room_id:
        raise InvalidRequest("room.room_id", 0, "a room's id, which is never 0")
