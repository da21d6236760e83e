"""Whether a worker is well: pure bookkeeping of what it fails, and what an error says of the process that met it.

well: FAILURES_MAX different jobs failed in a row -> suspect: its own check passes -> well
                                                              its own check fails  -> broken
"""

from __future__ import annotations

import re

from triptych.errors import RoomGone, SourceCorrupt, TransferFailed, TriptychError

FAILURES_MAX = 3
"""Different jobs in a row that fail before a worker looks at itself: one may be the job's fault, two a coincidence."""
PAUSE_S_MAX = 60.0
"""Longest quarantine before a check. One that passes its checks and fails all jobs between them is tried ever more
rarely: it may be sick in a way that no check sees, or somebody sends jobs that nobody can do."""

_POISON = re.compile(
    r"device-side assert|illegal (memory access|address|instruction)|misaligned address|invalid (address space|program"
    r" counter)|unspecified launch failure|launch timed out|hardware stack error|uncorrectable ECC",
    re.IGNORECASE,
)
"""After these a CUDA context gives nothing but errors, in every later call ("sticky" in CUDA's documents). Others leave
it whole, such as a kernel that isn't built for the device: a worker that meets nothing else quarantines itself."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|std::bad_alloc", re.IGNORECASE
)
_OUT_OF_MEMORY_TYPES = frozenset({"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"})


class Health:
    """One worker's. All methods belong to its event loop."""

    def __init__(self) -> None:
        self._failed: set[str] = set()
        self._checks = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it should claim nothing and check itself."""
        return len(self._failed) >= FAILURES_MAX

    @property
    def pause_s(self) -> float:
        """How long to wait before the check: not at all at first, then twice as long each time without a success."""
        return min(2.0 ** (self._checks - 1), PAUSE_S_MAX) if self._checks else 0.0

    def failed(self, job_id: str) -> None:
        """A job failed here, for a reason that may be ours."""
        self._failed.add(job_id)

    def succeeded(self) -> None:
        """A job's phase was done here."""
        self._failed.clear()
        self._checks = 0

    def passed(self) -> None:
        """The check succeeded."""
        self._failed.clear()
        self._checks += 1


def is_ours(error: Exception) -> bool:
    """Whether an error may be the worker's own fault: the stage raised it, or a room couldn't be read."""
    return not isinstance(error, TriptychError) or isinstance(error, RoomGone | SourceCorrupt | TransferFailed)


def is_poison(error: Exception) -> bool:
    """Whether the process that met this error can do nothing right any more."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and bool(_POISON.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, of whatever kind and whoever says so."""
    if type(error).__name__ in _OUT_OF_MEMORY_TYPES or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_OUT_OF_MEMORY.search(str(error)))
