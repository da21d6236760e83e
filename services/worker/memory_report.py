"""What to say and what to free when memory has run out."""

from __future__ import annotations

import contextlib
import gc
import inspect
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import psutil

from triptych.errors import chain_of
from triptych.limits import bytes_text

_WANTED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
"""As torch, numpy and CUDA say it: "Tried to allocate 20.00 GiB", "you tried to allocate 64 bytes"."""
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_RESUMABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
"""Frames that are not cleared, which would end them: the worker's loop, which waits, is in the traceback, too."""
_CGROUP = Path("/sys/fs/cgroup")


class Shortage(NamedTuple):
    """What was asked for when memory ran out, and what there was."""

    needed_bytes: int
    """Asked for beyond what was held; 0 where that isn't known."""
    available_bytes: int
    """Free then."""
    total_bytes: int
    is_capped: bool
    """Whether the total is what the process may have, and not what the machine or the device has."""

    def sentence(self, device: str) -> str:
        """Both, for people."""
        asked = "the amount asked for is not known"
        if self.needed_bytes:
            asked = f"{bytes_text(self.needed_bytes)} more were asked for"
        total = bytes_text(self.total_bytes)
        of = f"the {total} that this process may have" if self.is_capped else total
        return f"out of memory on {device}: {asked}; {bytes_text(self.available_bytes)} of {of} were free"


def shortage(error: BaseException, device: str) -> Shortage:
    """Measure an error for which `health.is_out_of_memory` holds, before anything of it is freed."""
    needed_bytes = 0
    if match := _WANTED.search(str(error)):
        needed_bytes = int(float(match[1]) * _UNITS[match[2].lower()])
    return Shortage(needed_bytes, *_there_was(device))


def give_back(error: BaseException) -> None:
    """Free what an error's frames hold, and empty the device's cache. Call it in the stage's thread."""
    for chained in chain_of(error):
        for frame, _line in traceback.walk_tb(chained.__traceback__):
            if not frame.f_code.co_flags & _RESUMABLE:
                with contextlib.suppress(RuntimeError):  # it is still running
                    frame.clear()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _there_was(device: str) -> tuple[int, int, bool]:
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        free, total = torch.cuda.mem_get_info(device)
        return free, total, False
    free, total = _free_and_total()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        left = max(limit - pages * resource.getpagesize(), 0)
        if left < free:
            return left, limit, True
    return free, total, False


def _free_and_total() -> tuple[int, int]:
    """Bytes of the machine, or of the container where it has less."""
    machine = psutil.virtual_memory()
    limit = _number(_CGROUP / "memory.max")
    if limit and limit < machine.total:
        return max(min(machine.available, limit - _number(_CGROUP / "memory.current")), 0), limit
    return machine.available, machine.total


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such controller here, or "max"
        return 0
