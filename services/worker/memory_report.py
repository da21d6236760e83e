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

import psutil

from triptych.errors import chain_of
from triptych.limits import bytes_text

_WANTED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
"""As torch, numpy and CUDA say it: "Tried to allocate 20.00 GiB", "you tried to allocate 64 bytes"."""
_RESUMABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
"""Frames that are not cleared, which would end them: the worker's loop, which waits, is in the traceback, too."""
_CGROUP = Path("/sys/fs/cgroup")


def sentence(error: BaseException, device: str) -> str:
    """One sentence on an error for which `health.is_out_of_memory` holds: how much was asked for, how much was free."""
    asked = "the amount asked for is not known"
    if match := _WANTED.search(str(error)):
        amount = float(match[1])
        unit = match[2]
        wanted = bytes_text(amount) if unit.lower() == "bytes" else f"{amount:.4g} {unit}"
        asked = f"{wanted} more were asked for"
    return f"out of memory on {device}: {asked}; {_there_was(device)}"


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


def _there_was(device: str) -> str:
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        free, total = torch.cuda.mem_get_info(device)
        return f"{bytes_text(free)} of {bytes_text(total)} were free"
    free, total = _free_and_total()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        left = max(limit - pages * resource.getpagesize(), 0)
        if left < free:
            return f"{bytes_text(left)} of the {bytes_text(limit)} that this process may have were free"
    return f"{bytes_text(free)} of {bytes_text(total)} were free"


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
