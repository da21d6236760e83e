"""The rooms of a text-encoder process: each holds one answer, and stays for equal calls until its space is needed.

A reader that comes when its room is gone asks again. So nobody has to tell when a room was read, and a reader that dies
leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from triptych.errors import ArenaFull
from triptych.transport.arena import Arena
from triptych.transport.codec import Encoded
from triptych.v1.room_pb2 import RoomRef

RECENT = 16
"""Rooms that are kept for their first readers even where none are kept for equal calls."""


class Embeddings:
    """Answers by what was asked, the least recently used dropped first. Methods may be called from any thread."""

    def __init__(self, arena: Arena, address: str, bytes_max: int) -> None:
        self._arena = arena
        self._address = address
        self._bytes_max = bytes_max
        self._made = 0
        self._rooms: OrderedDict[bytes, RoomRef] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """Bytes of all rooms."""
        with self._lock:
            return sum(ref.size_bytes for ref in self._rooms.values())

    def get(self, key: bytes) -> RoomRef | None:
        """The room of an answer; None where there is none, or where none are kept for equal calls."""
        with self._lock:
            if not self._bytes_max or key not in self._rooms:
                return None
            self._rooms.move_to_end(key)
            return self._rooms[key]

    def put(self, key: bytes, encoded: Encoded) -> RoomRef:
        """Keep an answer; others make space for it. Raises ArenaFull where the whole arena is too small now, and
        InvalidRequest where it always is."""
        with self._lock:
            self._drop(key)
            self._made += 1
            while True:
                try:
                    ref = self._arena.put(self._made, encoded.manifest, encoded.buffers)
                    break
                except ArenaFull:
                    if not self._rooms:
                        raise
                    self._drop(next(iter(self._rooms)))
            ref.owner_address = self._address
            self._rooms[key] = ref
            self._shrink()
            return ref

    def _shrink(self) -> None:
        kept_bytes = sum(ref.size_bytes for ref in self._rooms.values())
        while kept_bytes > self._bytes_max and len(self._rooms) > RECENT:
            key, ref = next(iter(self._rooms.items()))
            kept_bytes -= ref.size_bytes
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        if (ref := self._rooms.pop(key, None)) is not None:
            self._arena.release(ref.room_id)
