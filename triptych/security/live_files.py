"""Files that are replaced while processes read them: noticing it, and doing it."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from triptych.errors import InvalidRequest

log = logging.getLogger(__name__)

Content = TypeVar("Content")


class LiveFiles(Generic[Content]):
    """What some files say, read again when one of them is replaced or rewritten. Threads: any.

    `read` gets what was read last (None at first) and raises InvalidRequest for what can't be used. Then the content
    before stays, one line is logged, and the files are read again the next time.
    """

    def __init__(self, about: str, paths: Sequence[Path], read: Callable[[Content | None], Content]) -> None:
        """Read the files. Raises InvalidRequest."""
        self._about = about
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._look()
        self._is_stale = False
        self._content = read(None)
        self.version = 0
        """Counts up with each change of content that was taken up."""

    def get(self) -> Content:
        """The content as of now. Costs a `stat` for each file."""
        with self._lock:
            now = self._look()
            if now != self._seen or self._is_stale:
                self._seen = now
                self._read_again()
            return self._content

    def _read_again(self) -> None:
        try:
            content = self._read(self._content)
        except InvalidRequest as error:
            if not self._is_stale:
                log.error("%s: what was read before stays: %s", self._about, error)
            self._is_stale = True
            return
        self._is_stale = False
        if content != self._content:
            self._content = content
            self.version += 1
            log.info("%s: read again", self._about)

    def _look(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in self._paths]


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Write a whole file in one step: readers see the old one or the new one. Raises OSError."""
    # Not made of the file's own name, which may be as long as names can be.
    temporary = path.with_name(f".triptych-{secrets.token_hex(16)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
