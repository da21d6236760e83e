"""How much `/dev/shm` has for the arenas of a host, and what to say where that is too little.

Arenas take their pages when they use them, so all of them together may be larger than the file system. Then each keeps
to its share, or encoders that run ahead would take the pages that a transformer needs to finish, and all would wait.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from triptych.transport.host import SHARED_MEMORY

NAME_PREFIX = "triptych-arena-"
"""Every arena's file is named so, and `local` opens no other file."""
REMEDY = "enlarge it (docker run --shm-size; mount -o remount,size=…), or give workers a smaller --arena-bytes"


class Space(NamedTuple):
    """What the file system has."""

    total_bytes: int
    """0 where it has no limit of its own."""
    free_bytes: int


def space(folder: Path = SHARED_MEMORY) -> Space:
    """Of `/dev/shm`. Raises OSError where there is none."""
    found = os.statvfs(folder)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def promised_bytes(folder: Path = SHARED_MEMORY) -> int:
    """The sizes of all arenas there, together."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(NAME_PREFIX):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # its owner has just left
    return total


def share_bytes(size_bytes: int, folder: Path = SHARED_MEMORY) -> int:
    """What an arena of this size, already there, may take: all of it, or its part where they are promised too much."""
    total, promised = space(folder).total_bytes, promised_bytes(folder)
    if not total or promised <= total:
        return size_bytes
    return total * size_bytes // promised


def shortage(wanted_bytes: int, folder: Path = SHARED_MEMORY) -> str:
    """A sentence where arenas of `wanted_bytes` together are more than the file system has; or else nothing."""
    total = space(folder).total_bytes
    if not total or wanted_bytes <= total:
        return ""
    return (
        f"{folder} has {total} bytes in all, and the arenas of this host want {wanted_bytes} (arena_bytes of each "
        f"worker): work will wait for space, and what can never fit fails; {REMEDY}"
    )
