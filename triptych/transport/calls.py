"""A call of a module between processes: its arguments as the bytes of a room, and its output as a room's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.errors import InvalidRequest
from triptych.transport import codec, room

CALL_BYTES_MAX = 60 * 2**20
"""Most bytes of arguments: below the largest message of gRPC. Pictures for a model that reads them take a few MB."""
_ROOM_ID = 1
"""Arguments are no room of an arena, but its layout asks for an id."""


def pack(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments as bytes; equal arguments give equal bytes.

    Raises InvalidRequest that names an argument that can't cross, or their size.
    """
    encoded = codec.encode({"args": list(args), "kwargs": dict(sorted(kwargs.items()))}, "")
    pieces, size_bytes = room.lay_out(_ROOM_ID, encoded.manifest, encoded.buffers)
    if size_bytes > CALL_BYTES_MAX:
        raise InvalidRequest("size of the arguments in bytes", size_bytes, f"at most {CALL_BYTES_MAX}")
    return b"".join(pieces)


def structure_of(data: bytes) -> bytes:
    """What calls have in common that differ in nothing but the values of their tensors: a room's manifest."""
    return room.parse(memoryview(data), _ROOM_ID).SerializeToString(deterministic=True)


def unpack(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, on the CPU, in memory of their own. Raises SourceCorrupt for other bytes than `pack` makes."""
    whole = memoryview(bytearray(data))
    values: dict[str, Any] = codec.decode(room.parse(whole, _ROOM_ID), whole)
    return values["args"], values["kwargs"]
