"""The files of a host's arenas in `/dev/shm`: making, sweeping, and how much space there is.

The owner of an arena holds an exclusive `flock` on its file, and the kernel drops that lock however the process ends.
So the lock says whether an arena is dead, also across process-id namespaces and reused ids; the process id in the name
is for people.

Arenas take their pages when they use them, so all of them together may be larger than the file system. Then each keeps
to its share. Otherwise encoders that run ahead would take the pages that a transformer needs to finish, and all would
wait.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from triptych.transport.host import SHARED_MEMORY

NAME_PREFIX = "triptych-arena-"
"""Every arena's file name starts with this, and the mover `local` opens no other file."""
REMEDY = "enlarge it (docker run --shm-size; mount -o remount,size=…), or give workers a smaller --arena-bytes"
_CREATE_ATTEMPTS_MAX = 8
"""A sweeper may delete a file between its creation and its lock. Eight times in a row is no accident."""


class Space(NamedTuple):
    """The size of the file system, and how much of it is free."""

    total_bytes: int
    """0 where it has no limit of its own."""
    free_bytes: int


def space(folder: Path = SHARED_MEMORY) -> Space:
    """The space of `/dev/shm`. Raises OSError where there is none."""
    found = os.statvfs(folder)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def promised_bytes(folder: Path = SHARED_MEMORY) -> int:
    """The sum of the sizes of all arenas there."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(NAME_PREFIX):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # its owner has just deleted it
    return total


def share_bytes(size_bytes: int, folder: Path = SHARED_MEMORY) -> int:
    """How much an existing arena of this size may take: all of it, or its share where the arenas are too large."""
    total, promised = space(folder).total_bytes, promised_bytes(folder)
    if not total or promised <= total:
        return size_bytes
    return total * size_bytes // promised


def shortage(wanted_bytes: int, folder: Path = SHARED_MEMORY) -> str:
    """A sentence if arenas of `wanted_bytes` together are larger than the file system, else an empty string."""
    total = space(folder).total_bytes
    if not total or wanted_bytes <= total:
        return ""
    return (
        f"{folder} has {total} bytes in all, and the arenas of this host want {wanted_bytes} (arena_bytes of each "
        f"worker): work will wait for space, and what can never fit fails; {REMEDY}"
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
