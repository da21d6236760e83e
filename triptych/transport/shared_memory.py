"""The files of a host's arenas in `/dev/shm`: making and sweeping them, their pages, and how much space there is.

The owner of an arena holds an exclusive `flock` on its file, and the kernel drops that lock however the process ends.
So the lock says whether an arena is dead, also across process-id namespaces and reused ids; the process id in the name
is for people.

Arenas take their pages before they write to them, so all of them together may be larger than the file system. Then
each keeps to its share and gives back the pages that it doesn't use. Otherwise encoders that run ahead would take the
pages that a transformer needs to finish, and all would wait.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from triptych.errors import ArenaFull, WrongState

SHARED_MEMORY = Path("/dev/shm")
"""Where arenas live: the tmpfs that every Linux has."""
NAME_PREFIX = "triptych-arena-"
"""Every arena's file name starts with this, and the mover `local` opens no other file."""
REMEDY = "enlarge it (docker run --shm-size; mount -o remount,size=…), or give workers a smaller --arena-bytes"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CREATE_ATTEMPTS_MAX = 8
"""A sweeper may delete a file between its creation and its lock. Eight times in a row is no accident."""


class Space(NamedTuple):
    """The size of the file system, and how much of it is free."""

    total_bytes: int
    """0 where it has no limit of its own."""
    free_bytes: int


def host_id() -> str:
    """The id of this host: the kernel's boot id and the device number of the tmpfs at `/dev/shm`.

    Processes with equal ids can open each other's arenas. Two containers on one machine have the same boot id, but
    share `/dev/shm` only if it is the same mounted file system, with the same device number.
    """
    return f"{_BOOT_ID.read_text().strip()}/{SHARED_MEMORY.stat().st_dev:x}"


def space() -> Space:
    """The space of `/dev/shm`. Raises OSError where there is none."""
    found = os.statvfs(SHARED_MEMORY)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def promised_bytes() -> int:
    """The sum of the sizes of all arenas there."""
    total = 0
    with os.scandir(SHARED_MEMORY) as entries:
        for entry in entries:
            if entry.name.startswith(NAME_PREFIX):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # its owner has just deleted it
    return total


def share_bytes(size_bytes: int) -> int:
    """How much an existing arena of this size may take: all of it, or its share where the arenas are too large."""
    total = space().total_bytes
    promised = promised_bytes()
    if not total or promised <= total:
        return size_bytes
    return total * size_bytes // promised


def shortage(wanted_bytes: int) -> str:
    """A sentence if arenas of `wanted_bytes` together are larger than the file system, else an empty string."""
    total = space().total_bytes
    if not total or wanted_bytes <= total:
        return ""
    return (
        f"{SHARED_MEMORY} has {total} bytes in all, and the arenas of this host want {wanted_bytes} (arena_bytes of "
        f"each worker): work will wait for space, and what can never fit fails; {REMEDY}"
    )


def create_locked() -> tuple[Path, int]:
    """A new, empty file for an arena (mode 0600), and its descriptor, which holds the lock. Raises OSError."""
    for _attempt in range(_CREATE_ATTEMPTS_MAX):
        path = SHARED_MEMORY / f"{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)
    raise OSError(errno.EAGAIN, "every file was swept before it was locked")


def sweep() -> list[Path]:
    """Delete the arenas of dead processes and return their paths."""
    swept = []
    for path in SHARED_MEMORY.glob(NAME_PREFIX + "*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another sweeper was faster, or it is another user's
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            swept.append(path)
        except OSError:  # locked: its owner lives
            continue
        finally:
            os.close(file)
    return swept


class Pages:
    """The pages of one arena's file. Not thread-safe; the arena holds the lock.

    A write to a mapped page that `/dev/shm` has no space for kills the process with SIGBUS, but `posix_fallocate`
    returns an error.
    """

    def __init__(self, file: int, mapping: mmap.mmap) -> None:
        self._file = file
        self._mapping = mapping
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
        self.share_bytes = share_bytes(self._size_bytes)
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
            raise ArenaFull(f"{SHARED_MEMORY} has {space().free_bytes} bytes left") from error
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
            raise WrongState(f"{SHARED_MEMORY} has no {self._size_bytes} bytes (arena_bytes) to pin") from error
        self._taken_bytes = self._size_bytes
        self._is_pinned = True
        self._gives_back = False

    def give_all_back(self) -> None:
        """Give every page back."""
        self._mapping.madvise(mmap.MADV_REMOVE)
        self._taken_bytes = 0
        self._is_pinned = False
