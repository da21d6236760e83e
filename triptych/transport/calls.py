"""Values between processes that share no arena, as the bytes of a room; among them the arguments of a module's call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.errors import InvalidRequest
from triptych.transport import codec, room

CALL_BYTES_MAX = 60 * 2**20
"""Most bytes of arguments: below the largest message of gRPC. Pictures for a model that reads them take a few MB."""
_ROOM_ID = 1
"""These bytes lie in no arena, but a room's layout asks for an id."""


def pack(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments as bytes; equal arguments give equal bytes.

    Raises InvalidRequest that names an argument that can't cross, or their size.
    """
    pieces, size_bytes = pieces_of({"args": list(args), "kwargs": dict(sorted(kwargs.items()))})
    if size_bytes > CALL_BYTES_MAX:
        raise InvalidRequest("size of the arguments in bytes", size_bytes, f"at most {CALL_BYTES_MAX}")
    return b"".join(pieces)


def structure_of(data: bytes) -> bytes:
    """What calls have in common that differ in nothing but the values of their tensors: a room's manifest."""
    return room.parse(memoryview(data), _ROOM_ID).SerializeToString(deterministic=True)


def unpack(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, on the CPU, in memory of their own. Raises SourceCorrupt for other bytes than `pack` makes."""
    values: dict[str, Any] = values_in(data)
    return values["args"], values["kwargs"]


def pieces_of(values: Mapping[str, object]) -> tuple[list[bytes | memoryview], int]:
    """Values as the bytes of a room, in pieces that don't copy tensors, and their length.

    Raises InvalidRequest that names a value that can't cross.
    """
    encoded = codec.encode(values, "")
    return room.lay_out(_ROOM_ID, encoded.manifest, encoded.buffers)


def values_in(data: bytes, device: str = "cpu") -> dict[str, object]:
    """The values in a room's bytes, in memory of their own; `device` as in `codec.decode`. Raises SourceCorrupt."""
    whole = memoryview(data)
    return codec.decode(room.parse(whole, _ROOM_ID), whole, device)
