"""Small disks for results and state, that can be filled and freed. They live in the run's own mount namespace."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from tests.chaos.network import run

SIZE_MIB = 48
"""Each disk: the results of a thousand jobs, or their journal with its write-ahead log."""
_FILLER = "filler"


class Disks:
    """One tmpfs for each name, below `folder`."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._paths = {name: folder / name for name in names}

    async def open(self) -> None:
        """Mount them."""
        for path in self._paths.values():
            path.mkdir(parents=True, exist_ok=True)
            await run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "chaos", str(path))

    async def close(self) -> None:
        """Unmount them, and with them what they hold."""
        for path in self._paths.values():
            await run("umount", str(path))

    def fill(self, name: str) -> None:
        """Take every byte that is left."""
        with (self._paths[name] / _FILLER).open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):  # the disk is full: what was wanted
                    while True:
                        os.write(file.fileno(), b"\0" * size)

    def is_full(self, name: str) -> bool:
        """Whether nothing can be written."""
        probe = self._paths[name] / "probe"
        try:
            probe.write_bytes(b"1")
        except OSError as error:
            return error.errno == errno.ENOSPC
        finally:
            probe.unlink(missing_ok=True)
        return False

    def free(self, name: str) -> None:
        """Give the space back."""
        (self._paths[name] / _FILLER).unlink(missing_ok=True)
