"""Arenas in a `/dev/shm` of 1 MiB: run by `test_shared_memory` as a process of its own, in a mount namespace."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from triptych.errors import ArenaFull, InvalidRequest
from triptych.transport import codec, shared_memory
from triptych.transport.arena import Arena

MIB = 2**20


def put(arena: Arena, room_id: int, size_bytes: int, beside_bytes: int = 0) -> None:
    """A room of about this size."""
    encoded = codec.encode({"latents": np.full(size_bytes, room_id, np.uint8)}, "job")
    arena.put(room_id, encoded.manifest, encoded.buffers, beside_bytes)


def main() -> None:
    """Fails by an AssertionError."""
    total, before = shared_memory.space()
    assert total == MIB
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(Arena(MIB // 2))
        put(alone, 1, MIB // 8)
        put(alone, 2, MIB // 8)
        assert not shared_memory.shortage(shared_memory.promised_bytes())
        first, second = (stack.enter_context(Arena(MIB)) for _ in range(2))
        assert "--shm-size" in shared_memory.shortage(shared_memory.promised_bytes())
        assert shared_memory.share_bytes(first.size_bytes) == MIB * MIB // (2 * MIB + MIB // 2)

        put(first, 3, MIB // 4)
        with pytest.raises(ArenaFull, match="share of /dev/shm"):
            put(first, 4, MIB // 4)
        assert first.largest_gap_bytes < MIB // 4, "so it claims nothing meanwhile"
        put(second, 5, MIB // 4)
        with pytest.raises(InvalidRequest, match="--shm-size"):
            put(second, 6, MIB)
        with pytest.raises(InvalidRequest, match="beside the 700000"):
            put(second, 6, MIB // 2, 700_000)

        held = shared_memory.space().free_bytes
        first.release(3)
        assert shared_memory.space().free_bytes >= held + MIB // 4 - 8192, "what isn't used is given back"
        alone.release(1)
        put(alone, 7, MIB // 16)
        alone.release(2)
        put(first, 8, 3 * MIB // 8)
        assert second.read(5, 0, MIB)[-1] == 5
        assert first.read(8, 0, MIB)[-1] == 8
        assert alone.read(7, 0, MIB)[-1] == 7
        with pytest.raises(ArenaFull):
            put(alone, 9, MIB // 2 - MIB // 16 - 4096)
        for arena, room_id in ((first, 8), (second, 5), (alone, 7)):
            assert arena.release(room_id)
        put(first, 10, MIB - 65_536)
        assert first.read(10, 0, MIB)[-1] == 10, "one room may be larger than the share, where there is space"
    assert shared_memory.space().free_bytes == before


if __name__ == "__main__":
    main()
