"""The pages of an arena's file: taken before they are written, and given back where a host's arenas are too large.

A write to a mapped page that `/dev/shm` has no space for kills the process with SIGBUS; `posix_fallocate` returns an
error instead. Where the arenas of a host are promised more than `/dev/shm` has, each keeps to its share and gives back
the pages that it doesn't use.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from triptych.errors import ArenaFull, WrongState
from triptych.transport import shared_memory


class Pages:
    """The pages of one file in `folder`. Not thread-safe; the arena holds the lock."""

    def __init__(self, file: int, mapping: mmap.mmap, folder: Path) -> None:
        self._file = file
        self._mapping = mapping
        self._folder = folder
        self._size_bytes = len(mapping)
        self._taken_bytes = 0
        """Pages up to here are taken. Stays 0 once pages are given back: then each range takes its own."""
        self._gives_back = False
        self._is_pinned = False
        self.share_bytes = self._size_bytes

    def left_bytes(self, used_bytes: int) -> int:
        """How much of the share is left. One range may be larger than the share, so that work can go on."""
        return self._size_bytes if self._is_pinned or not used_bytes else max(0, self.share_bytes - used_bytes)

    def look_at_share(self) -> None:
        """Compute the share again: other arenas come and go."""
        self.share_bytes = shared_memory.share_bytes(self._size_bytes, self._folder)
        self._gives_back |= self.share_bytes < self._size_bytes and not self._is_pinned

    def take(self, offset_bytes: int, size_bytes: int) -> None:
        """Take the pages of a range. Raises ArenaFull."""
        if offset_bytes + size_bytes <= self._taken_bytes:
            return
        try:
            os.posix_fallocate(self._file, offset_bytes, size_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ArenaFull(f"{self._folder} has {shared_memory.space(self._folder).free_bytes} bytes left") from error
        if not self._gives_back:
            self._taken_bytes = offset_bytes + size_bytes

    def give_back(self, offset_bytes: int, size_bytes: int) -> None:
        """Give back the pages of a free range, where that is needed. Those at its ends may be a neighbour's, too."""
        self.look_at_share()
        if not self._gives_back:
            return
        start = -(-offset_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset_bytes + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        self._taken_bytes = 0
        if end > start:
            self._mapping.madvise(mmap.MADV_REMOVE, start, end - start)

    def take_all(self) -> None:
        """Take every page and keep it. Raises WrongState if `/dev/shm` has too few."""
        try:
            os.posix_fallocate(self._file, 0, self._size_bytes)
        except OSError as error:
            raise WrongState(f"{self._folder} has no {self._size_bytes} bytes (arena_bytes) to pin") from error
        self._taken_bytes = self._size_bytes
        self._is_pinned = True
        self._gives_back = False

    def give_all_back(self) -> None:
        """Give every page back."""
        self._mapping.madvise(mmap.MADV_REMOVE)
        self._taken_bytes = 0
        self._is_pinned = False
