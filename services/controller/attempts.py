"""The attempts in a job's record: which of them count, and when a job isn't tried again. Pure, but for `attempt_of`."""

from __future__ import annotations

from triptych.v1 import job_pb2 as pb
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.journal_pb2 import JournalEntry

COUNTED = frozenset(
    {
        pb.ATTEMPT_KIND_UNSPECIFIED,
        pb.ATTEMPT_KIND_STAGE_ERROR,
        pb.ATTEMPT_KIND_WORKER_DIED,
        pb.ATTEMPT_KIND_OUT_OF_MEMORY,
    }
)
"""Kinds that count against `attempts_max`: what failed while the job ran, and nothing that happened around it."""
UNCOUNTED_MAX = 100
"""Attempts of one job that may end for reasons around it. A fleet that loses a room, or leaves, a hundred times while
one job is under way is not going to finish it; and the record of so many takes some 30 KiB."""
OUT_OF_MEMORY_MAX = 2
"""A job that is too large for two workers is too large."""
SICK_MAX = 8
"""Workers that may break under one job: each starts again for it, and it may be the job's inputs that break them."""


def attempt_of(role: Role.ValueType, rank: int, reason: str, kind: pb.AttemptKind.ValueType) -> pb.Attempt:
    """An attempt that ends now."""
    attempt = pb.Attempt(role=role, rank=rank, reason=reason, kind=kind)
    attempt.end_time.GetCurrentTime()
    return attempt


def counted(job: pb.Job) -> int:
    """How many attempts count against `attempts_max`."""
    return sum(attempt.kind in COUNTED for attempt in job.attempts)


def failures(job: pb.Job, role: Role.ValueType) -> dict[int, int]:
    """How often each rank has failed the job in a role, whether that counts or not."""
    found: dict[int, int] = {}
    for attempt in job.attempts:
        if attempt.role == role:
            found[attempt.rank] = found.get(attempt.rank, 0) + 1
    return found


def verdict(job: pb.Job, attempts_max: int) -> str:
    """Why the job isn't tried again after its last attempt; empty where it is."""
    count = counted(job)
    last = job.attempts[-1]
    if last.kind == pb.ATTEMPT_KIND_OUT_OF_MEMORY and len(_reasons(job, last.kind)) >= OUT_OF_MEMORY_MAX:
        return last.reason
    if count >= attempts_max:
        return f"gave up after {count} attempts; the last: {_reasons(job, *COUNTED)[-1]}"
    sick = _reasons(job, pb.ATTEMPT_KIND_WORKER_SICK)
    if len(sick) >= SICK_MAX:
        return f"gave up after {SICK_MAX} attempts by workers that broke; the last: {sick[-1]}"
    if len(job.attempts) - count >= UNCOUNTED_MAX:
        return f"gave up after {UNCOUNTED_MAX} interruptions; the last: {last.reason}"
    return ""


def absolve(entry: JournalEntry, rank: int, *, is_sick: bool) -> JournalEntry:
    """The entry without the failures of a broken worker counted; with them again where it is well (not `is_sick`)."""
    failed = (pb.ATTEMPT_KIND_STAGE_ERROR, pb.ATTEMPT_KIND_OUT_OF_MEMORY)
    sources = failed if is_sick else (pb.ATTEMPT_KIND_WORKER_SICK,)
    target = pb.ATTEMPT_KIND_WORKER_SICK if is_sick else pb.ATTEMPT_KIND_STAGE_ERROR
    after = JournalEntry()
    after.CopyFrom(entry)
    for attempt in after.job.attempts:
        if attempt.rank == rank and attempt.kind in sources:
            attempt.kind = target
    return after if after != entry else entry


def _reasons(job: pb.Job, *kinds: pb.AttemptKind.ValueType) -> list[str]:
    return [attempt.reason for attempt in job.attempts if attempt.kind in kinds]
