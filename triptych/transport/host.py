"""Which host this is: equal ids may open each other's arenas."""

from __future__ import annotations

from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Where arenas live: the tmpfs that every Linux has."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """The running kernel's boot id and the device number of the tmpfs at `/dev/shm`.

    Two containers on one machine have the same boot id, but share `/dev/shm` only where it is the same mounted
    file system; its device number says so, which namespaces' ids would only suggest.
    """
    return f"{_BOOT_ID.read_text().strip()}/{SHARED_MEMORY.stat().st_dev:x}"
