"""Files that others replace while we run: noticing it, and doing it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


class FileStamp:
    """Notices when one of some files is replaced or rewritten."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Whether a file is another than when this was last asked. Costs a `stat` for each."""
        now = self._look()
        changed, self._seen = now != self._seen, now
        return changed

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(path) for path in self._paths)


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Write a whole file in one step: readers see the old one or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
