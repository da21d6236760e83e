"""Small disks that a test can fill: a tmpfs in a test's folder, which takes root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PIECE_BYTES = (64 * 2**10, 4096, 512, 1)


class Disk:
    """A folder on a file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Take every byte that is left."""
        with self._filler.open("ab", buffering=0) as file:
            for piece_bytes in _PIECE_BYTES:
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(piece_bytes))

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Disk]:
    """Mount one for the length of a block. Skips the test where that isn't allowed."""
    if os.geteuid() != 0:
        pytest.skip("a file system of a test's own takes root, to mount it")
    path.mkdir(parents=True)
    command = ("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(("umount", "--lazy", str(path)), check=True)
