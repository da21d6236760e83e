"""The id of this host. Processes with equal ids can open each other's arenas."""

from __future__ import annotations

from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Where arenas live: the tmpfs that every Linux has."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """The kernel's boot id and the device number of the tmpfs at `/dev/shm`.

    Two containers on one machine have the same boot id, but share `/dev/shm` only if it is the same mounted file
    system, with the same device number.
    """
    return f"{_BOOT_ID.read_text().strip()}/{SHARED_MEMORY.stat().st_dev:x}"
