"""A job's life: pure functions from one journal entry to the next.

    event       from                         to                               generation
    start       waiting(role)                running(role)                    same
    start       running(role), same ticket,  running(role)                    same   (the ring redelivered it)
                later attempt
    complete    running(role), same lease    waiting(next role) or SUCCEEDED  same
    lose lease  running(role)                waiting(role)                    same   (the ring redelivers it)
    retry       running(role)                waiting(role)                    + 1
    go back     waiting(role), running(role) waiting(role of a live room)     + 1
    give up     any that is not over         FAILED, CANCELLED or EXPIRED     same

    waiting: QUEUED, ENCODED, DENOISED      running: ENCODING, DENOISING, DECODING

Rules for editors: a function here takes an entry and returns a new one or raises; it never changes its
argument, reads a clock or does I/O. A terminal state is never left. A dispatch counts only in the generation
that it was published in, so whatever sends a job back raises the generation and with it refuses every dispatch,
completion and failure that is still under way. `COUNTED` says which attempts count against `attempts_max`: what failed
while the job ran, and nothing that happened around it.
"""

from __future__ import annotations

from collections.abc import Callable

from triptych.errors import LeaseLost, WrongState
from triptych.roles import NEXT, role_name
from triptych.v1.dispatch_pb2 import (
    ROLE_DECODER,
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Dispatch,
    Role,
)
from triptych.v1.job_pb2 import (
    ATTEMPT_KIND_OUT_OF_MEMORY,
    ATTEMPT_KIND_STAGE_ERROR,
    ATTEMPT_KIND_UNSPECIFIED,
    ATTEMPT_KIND_WORKER_DIED,
    ATTEMPT_KIND_WORKER_SICK,
    JOB_STATE_CANCELLED,
    JOB_STATE_DECODING,
    JOB_STATE_DENOISED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODED,
    JOB_STATE_ENCODING,
    JOB_STATE_EXPIRED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
    Attempt,
    AttemptKind,
    Job,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

WAITING: dict[Role.ValueType, JobState.ValueType] = {
    ROLE_ENCODER: JOB_STATE_QUEUED,
    ROLE_TRANSFORMER: JOB_STATE_ENCODED,
    ROLE_DECODER: JOB_STATE_DENOISED,
}
RUNNING: dict[Role.ValueType, JobState.ValueType] = {
    ROLE_ENCODER: JOB_STATE_ENCODING,
    ROLE_TRANSFORMER: JOB_STATE_DENOISING,
    ROLE_DECODER: JOB_STATE_DECODING,
}
ROLE_OF: dict[JobState.ValueType, Role.ValueType] = {
    state: role for table in (WAITING, RUNNING) for role, state in table.items()
}
COUNTED = frozenset(
    {
        ATTEMPT_KIND_UNSPECIFIED,
        ATTEMPT_KIND_STAGE_ERROR,
        ATTEMPT_KIND_WORKER_DIED,
        ATTEMPT_KIND_OUT_OF_MEMORY,
    }
)
"""Ends of attempts that count against `attempts_max`."""
UNCOUNTED_MAX = 100
"""Attempts of one job that may end for reasons around it. A fleet that loses a room, or leaves, a hundred times while
one job is under way is not going to finish it; and the record of so many takes some 30 KiB."""
OUT_OF_MEMORY_MAX = 2
"""A job that is too large for two workers is too large."""
SICK_MAX = 8
"""Workers that one job may meet broken: each starts again for it, and it may be the job's inputs that spoil them."""
Change = Callable[[JournalEntry], JournalEntry]
_RUNNING = frozenset(RUNNING.values())
OVER = frozenset({JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED, JOB_STATE_EXPIRED})


def role_of(entry: JournalEntry) -> Role.ValueType:
    """The role that the job waits for or is run by. The job must not be over."""
    return ROLE_OF[entry.job.state]


def is_over(entry: JournalEntry) -> bool:
    """Whether the job is in a terminal state."""
    return entry.job.state in OVER


def is_running(entry: JournalEntry) -> bool:
    """Whether a worker runs the job."""
    return entry.job.state in _RUNNING


def name(state: JobState.ValueType) -> str:
    """A state in words, for example `DENOISING`."""
    return JobState.Name(state).removeprefix("JOB_STATE_")


def rooms(entry: JournalEntry) -> dict[int, int]:
    """Rooms that the job keeps: owner's rank by room id. The encoder's is kept until the job is over, so that a
    transformer that dies costs one denoise and not the encode."""
    held = (d.room for d in (entry.phase1, entry.phase2) if d.HasField("room"))
    return {room.room_id: room.owner_rank for room in held}


def ranks(entry: JournalEntry) -> set[int]:
    """Workers that the job concerns: who runs it, and whose rooms it keeps."""
    return {entry.lease.rank, *rooms(entry).values()} if is_running(entry) else set(rooms(entry).values())


def dispatch_of(entry: JournalEntry) -> Dispatch:
    """What to publish so that the job's present role takes it up, in the present generation."""
    role = role_of(entry)
    result = Dispatch()
    if role == ROLE_TRANSFORMER:
        result.CopyFrom(entry.phase1)
    elif role == ROLE_DECODER:
        result.CopyFrom(entry.phase2)
    else:
        result.job_id = entry.job.job_id
        result.model_digest = entry.job.model_digest
        result.traceparent = entry.traceparent
        if entry.job.HasField("deadline_time"):
            result.deadline_time.CopyFrom(entry.job.deadline_time)
    result.role = role
    result.generation = entry.job.generation
    return result


def start(entry: JournalEntry, role: Role.ValueType, generation: int, lease: Lease) -> JournalEntry:
    """A worker begins. Raises LeaseLost when the dispatch is of the past or another worker has the job."""
    _check_current(entry, role, generation)
    if is_running(entry) and not _supersedes(lease, entry.lease):
        raise LeaseLost(f"job {entry.job.job_id} already runs at rank {entry.lease.rank}")
    after = _copy(entry)
    after.job.state = RUNNING[role]
    after.lease.CopyFrom(lease)
    setattr(after.job, role_name(role) + "_rank", lease.rank)
    return after


def complete(entry: JournalEntry, role: Role.ValueType, generation: int, lease: Lease) -> JournalEntry:
    """The stage is done: the job waits for the next role, or has SUCCEEDED after the last.

    The caller fills in `phase1`, `phase2` or `artifacts`. Raises LeaseLost unless the job runs under this lease.
    """
    check_lease(entry, role, generation, lease)
    after = _copy(entry)
    after.ClearField("lease")
    after.job.state = WAITING[NEXT[role]] if role in NEXT else JOB_STATE_SUCCEEDED
    return after


def retry(entry: JournalEntry, attempt: Attempt, attempts_max: int, verdict: str = "") -> JournalEntry:
    """The running stage failed: wait for the same role again, or FAIL past the cap (see `COUNTED`) or for `verdict`."""
    return _send_back(entry, attempt, attempts_max, role_of(entry), verdict)


def lose_lease(entry: JournalEntry, attempt: Attempt, attempts_max: int) -> JournalEntry:
    """The worker died and the ring delivers the same dispatch again: wait in the same generation (or FAIL)."""
    after = _send_back(entry, attempt, attempts_max, role_of(entry))
    after.job.generation = entry.job.generation
    return after


def go_back(
    entry: JournalEntry, attempt: Attempt, attempts_max: int, is_readable: Callable[[Dispatch], bool]
) -> JournalEntry:
    """The room that the present role reads is gone: wait for the last role whose own room `is_readable`."""
    role = role_of(entry)
    if role == ROLE_DECODER and not is_readable(entry.phase2):
        role = ROLE_TRANSFORMER
    if role == ROLE_TRANSFORMER and not is_readable(entry.phase1):
        role = ROLE_ENCODER
    return _send_back(entry, attempt, attempts_max, role)


def unlease(entry: JournalEntry) -> JournalEntry:
    """A running job, waiting again for the same role in the same generation: nothing went wrong with it."""
    after = _copy(entry)
    after.job.state = WAITING[role_of(entry)]
    after.ClearField("lease")
    return after


def give_up(entry: JournalEntry, state: JobState.ValueType, error: str, *, dead_letter: bool = False) -> JournalEntry:
    """End the job without a result, in `state`. Raises WrongState when it is over.

    A dead letter is a job that was tried as often as is allowed: it may be tried anew, as another job.
    """
    if is_over(entry):
        raise WrongState(f"job {entry.job.job_id} is already {JobState.Name(entry.job.state)}")
    after = _copy(entry)
    after.ClearField("lease")
    after.job.state = state
    after.job.error = error
    after.job.dead_letter = dead_letter
    return after


def counted(job: Job) -> int:
    """How many attempts count against `attempts_max`."""
    return sum(attempt.kind in COUNTED for attempt in job.attempts)


def failures(job: Job, role: Role.ValueType) -> dict[int, int]:
    """How often each rank has failed the job in a role, whether that counts or not."""
    found: dict[int, int] = {}
    for attempt in job.attempts:
        if attempt.role == role:
            found[attempt.rank] = found.get(attempt.rank, 0) + 1
    return found


def absolve(entry: JournalEntry, rank: int, *, is_sick: bool) -> JournalEntry:
    """A worker turned out to be broken, so what it failed doesn't count; or (not `is_sick`) it is well after all."""
    source, target = ATTEMPT_KIND_STAGE_ERROR, ATTEMPT_KIND_WORKER_SICK
    if not is_sick:
        source, target = target, source
    after = _copy(entry)
    for attempt in after.job.attempts:
        if attempt.rank == rank and (
            attempt.kind == source or (is_sick and attempt.kind == ATTEMPT_KIND_OUT_OF_MEMORY)
        ):
            attempt.kind = target
    return after if after != entry else entry


def _verdict(job: Job, attempts_max: int) -> str:
    """Why a job is not tried again, or nothing."""
    count, last = counted(job), job.attempts[-1]
    if last.kind == ATTEMPT_KIND_OUT_OF_MEMORY and _count(job, last.kind) >= OUT_OF_MEMORY_MAX:
        return last.reason
    if count >= attempts_max:
        reason = next(a.reason for a in reversed(job.attempts) if a.kind in COUNTED)
        return f"gave up after {count} attempts; the last: {reason}"
    sick = [a.reason for a in job.attempts if a.kind == ATTEMPT_KIND_WORKER_SICK]
    if len(sick) >= SICK_MAX:
        return f"gave up after {SICK_MAX} attempts by workers that broke; the last: {sick[-1]}"
    if len(job.attempts) - count >= UNCOUNTED_MAX:
        return f"gave up after {UNCOUNTED_MAX} interruptions; the last: {last.reason}"
    return ""


def _count(job: Job, kind: AttemptKind.ValueType) -> int:
    return sum(attempt.kind == kind for attempt in job.attempts)


def _send_back(
    entry: JournalEntry, attempt: Attempt, attempts_max: int, role: Role.ValueType, verdict: str = ""
) -> JournalEntry:
    after = _copy(entry)
    after.ClearField("lease")
    after.job.attempts.append(attempt)
    after.job.generation += 1
    after.job.step = 0
    if verdict := verdict or _verdict(after.job, attempts_max):
        after.job.state = JOB_STATE_FAILED
        after.job.dead_letter = True
        after.job.error = verdict
        return after
    after.job.state = WAITING[role]
    if role == ROLE_ENCODER:
        after.ClearField("phase1")
    if role in (ROLE_ENCODER, ROLE_TRANSFORMER):
        after.ClearField("phase2")
    return after


def _check_current(entry: JournalEntry, role: Role.ValueType, generation: int) -> None:
    job = entry.job
    if is_over(entry) or job.generation != generation or role_of(entry) != role:
        raise LeaseLost(
            f"job {job.job_id} is {JobState.Name(job.state)} in generation {job.generation}; "
            f"this is of role {role_name(role)}, generation {generation}"
        )


def check_lease(entry: JournalEntry, role: Role.ValueType, generation: int, lease: Lease) -> None:
    """Raise LeaseLost unless the job runs in this role and generation under this lease."""
    _check_current(entry, role, generation)
    if not is_running(entry) or entry.lease != lease:
        raise LeaseLost(f"job {entry.job.job_id} no longer runs under this lease")


def _supersedes(new: Lease, old: Lease) -> bool:
    """Whether the ring delivered the same dispatch again. A repeated call under the same lease counts too."""
    same = (new.ring, new.slot, new.ticket) == (old.ring, old.slot, old.ticket)
    return new == old or (same and new.attempt > old.attempt)


def _copy(entry: JournalEntry) -> JournalEntry:
    after = JournalEntry()
    after.CopyFrom(entry)
    return after
