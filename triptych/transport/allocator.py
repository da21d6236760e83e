"""First-fit allocation of one contiguous range. Pure bookkeeping: it touches no memory.

Free gaps are sorted by offset, and neighbours are merged immediately, so that no two gaps touch. A worker holds a
handful of rooms, so linear search is good enough.
"""

from __future__ import annotations

import bisect

from triptych.errors import ArenaFull, InvalidRequest

ALIGNMENT_BYTES = 64
"""A cache line, and the alignment of torch's own CPU tensors, so that kernels take the same path."""


def align_up(size_bytes: int) -> int:
    """The next multiple of `ALIGNMENT_BYTES`."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class FirstFitAllocator:
    """Allocates aligned, disjoint ranges of `[0, capacity_bytes)`. Not thread-safe; the arena holds the lock."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self._gaps: list[tuple[int, int]] = [(0, self.capacity_bytes)] if self.capacity_bytes else []
        self._sizes: dict[int, int] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes allocated, including alignment."""
        return sum(self._sizes.values())

    @property
    def largest_gap_bytes(self) -> int:
        """The largest size that `allocate` accepts now."""
        return max((end - start for start, end in self._gaps), default=0)

    def check(self, size_bytes: int) -> None:
        """Raise InvalidRequest if the size could never fit."""
        if not 0 < size_bytes <= self.capacity_bytes:
            accepted = f"1 to {self.capacity_bytes}, the size of the arena (arena_bytes)"
            raise InvalidRequest("room size in bytes", size_bytes, accepted)

    def allocate(self, size_bytes: int) -> int:
        """Take the first gap that is large enough; its offset. Raises ArenaFull, and InvalidRequest as `check` does."""
        self.check(size_bytes)
        needed = align_up(size_bytes)
        for index, (start, end) in enumerate(self._gaps):
            if end - start >= needed:
                remainder = [(start + needed, end)] if end - start > needed else []
                self._gaps[index : index + 1] = remainder
                self._sizes[start] = needed
                return start
        raise ArenaFull(
            f"no gap of {needed} bytes in the arena; the largest has {self.largest_gap_bytes} of {self.capacity_bytes}"
        )

    def free(self, offset_bytes: int) -> int:
        """Free the allocation at this offset; its size, including alignment."""
        size_bytes = self._sizes.pop(offset_bytes)
        start = offset_bytes
        end = start + size_bytes
        index = bisect.bisect(self._gaps, (start, end))
        if index < len(self._gaps) and self._gaps[index][0] == end:
            end = self._gaps.pop(index)[1]
        if index > 0 and self._gaps[index - 1][1] == start:
            index -= 1
            start = self._gaps.pop(index)[0]
        self._gaps.insert(index, (start, end))
        return size_bytes
