"""Whether a worker is well: pure bookkeeping of the jobs it fails, and what an error says of its process.

well: FAILURES_MAX different jobs failed in a row -> suspect: its own check passes -> well
                                                              its own check fails  -> broken
"""

from __future__ import annotations

import re

from triptych.errors import NotFinite, RoomGone, SourceCorrupt, TransferFailed, TriptychError, WorkerBroken

FAILURES_MAX = 3
"""Different jobs that fail in a row before a worker checks itself: one may be the job's fault, two a coincidence."""
CHECK_PAUSE_S_MAX = 60.0
"""Longest quarantine before a check. A worker that passes its checks and fails all jobs between them is tried more and
more rarely: it may be sick in a way that no check sees, or no worker can do the jobs."""

_POISON = re.compile(
    r"device-side assert|illegal (memory access|address|instruction)|misaligned address|invalid (address space|program"
    r" counter)|unspecified launch failure|launch timed out|hardware stack error|uncorrectable (ECC|NVLink)|"
    r"global/shared address space|invalid access of peer GPU memory|CUDA error: (unknown error|initialization error)"
    r"|GPU is lost|NCCL error|NCCL communicator was aborted|watchdog caught collective operation timeout",
    re.IGNORECASE,
)
"""After these errors ("sticky" in CUDA's documents) every later call of a CUDA context fails, too. Others leave the
context whole, for example a kernel that isn't built for the device; a worker that only meets these is quarantined."""
_POISON_TYPES = frozenset({"DistBackendError"})
"""torch.distributed's errors after which a group of processes can't go on: its communicators are aborted."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|std::bad_alloc", re.IGNORECASE
)
_OUT_OF_MEMORY_TYPES = frozenset({"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"})


class Health:
    """The health of one worker. All methods belong to its event loop."""

    def __init__(self) -> None:
        self._failed: set[str] = set()
        self._checks = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it should claim nothing and check itself."""
        return len(self._failed) >= FAILURES_MAX

    @property
    def pause_s(self) -> float:
        """How long to wait before the check: 0 at first, then twice as long each time without a success."""
        return min(2.0 ** (self._checks - 1), CHECK_PAUSE_S_MAX) if self._checks else 0.0

    def failed(self, job_id: str) -> None:
        """A job failed here, for a reason that may lie in the worker."""
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
    """Whether an error may be the worker's own fault: the stage raised it, or a room could not be read."""
    return not isinstance(error, TriptychError) or isinstance(
        error, NotFinite | RoomGone | SourceCorrupt | TransferFailed
    )


def is_poison(error: Exception) -> bool:
    """Whether the process that met this error can do nothing right any more."""
    if isinstance(error, WorkerBroken):
        return True
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return type(error).__name__ in _POISON_TYPES or bool(_POISON.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or the host, in any library's words; also where that broke the worker."""
    if isinstance(error, WorkerBroken) and error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    if type(error).__name__ in _OUT_OF_MEMORY_TYPES or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_OUT_OF_MEMORY.search(str(error)))
