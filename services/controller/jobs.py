"""A job's life: pure functions from one journal entry to the next, along the lines of `TRANSITIONS`.

EDITORS' RULES
 1. A job's state changes along a line of `TRANSITIONS` only; `advance` is the way. No line leaves a state of `OVER`.
 2. A function here takes an entry and returns a new one or raises. It never changes its argument, reads a clock or does
    I/O.
 3. A dispatch counts only in the generation in which it was published. A line that sends a job back raises the
    generation, which refuses every dispatch, completion and failure that is still under way.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import NamedTuple

from triptych.errors import LeaseLost, WrongState
from triptych.roles import NEXT, role_name
from triptych.telemetry import Outcome
from triptych.v1 import job_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Ring, Role
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

from . import attempts

WAITING: dict[Role.ValueType, pb.JobState.ValueType] = {
    ROLE_ENCODER: pb.JOB_STATE_QUEUED,
    ROLE_TRANSFORMER: pb.JOB_STATE_ENCODED,
    ROLE_DECODER: pb.JOB_STATE_DENOISED,
}
RUNNING: dict[Role.ValueType, pb.JobState.ValueType] = {
    ROLE_ENCODER: pb.JOB_STATE_ENCODING,
    ROLE_TRANSFORMER: pb.JOB_STATE_DENOISING,
    ROLE_DECODER: pb.JOB_STATE_DECODING,
}
ROLE_OF: dict[pb.JobState.ValueType, Role.ValueType] = {
    state: role for table in (WAITING, RUNNING) for role, state in table.items()
}
OUTCOMES: dict[pb.JobState.ValueType, Outcome] = {
    pb.JOB_STATE_SUCCEEDED: "succeeded",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLED: "cancelled",
    pb.JOB_STATE_EXPIRED: "expired",
}
OVER = frozenset(OUTCOMES)
Change = Callable[[JournalEntry], JournalEntry]
_WAITING = frozenset(WAITING.values())
_RUNNING = frozenset(RUNNING.values())
_UNFINISHED = _WAITING | _RUNNING
_COMPLETED = _WAITING | {pb.JOB_STATE_SUCCEEDED}
_SENT_BACK = _WAITING | {pb.JOB_STATE_FAILED}
_GIVEN_UP = OVER - {pb.JOB_STATE_SUCCEEDED}


class Transition(NamedTuple):
    """One allowed change of a job's state."""

    sources: Set[pb.JobState.ValueType]
    targets: Set[pb.JobState.ValueType]
    generation_step: int
    role: str


TRANSITIONS: dict[str, Transition] = {
    # line                   from         to          generation  the job's role then
    "start":      Transition(_WAITING,    _RUNNING,   0, "the same: a worker has claimed the dispatch"),
    "take over":  Transition(_RUNNING,    _RUNNING,   0, "the same, under another lease"),
    "complete":   Transition(_RUNNING,    _COMPLETED, 0, "the next, or none after the last"),
    "hand back":  Transition(_RUNNING,    _WAITING,   0, "the same: nothing went wrong"),
    "lose lease": Transition(_RUNNING,    _SENT_BACK, 0, "the same: the ring delivers the dispatch again"),
    "retry":      Transition(_RUNNING,    _SENT_BACK, 1, "the same"),
    "go back":    Transition(_UNFINISHED, _SENT_BACK, 1, "the last whose input is still there"),
    "give up":    Transition(_UNFINISHED, _GIVEN_UP,  0, "none: it ends without a result"),
}  # fmt: skip


def advance(line: str, entry: JournalEntry, state: pb.JobState.ValueType) -> JournalEntry:
    """The entry in `state`, along a line of the table. It keeps its lease only where it runs."""
    sources, targets, generation_step, _role = TRANSITIONS[line]
    assert entry.job.state in sources, (line, entry.job.state)
    assert state in targets, (line, state)
    after = JournalEntry()
    after.CopyFrom(entry)
    after.job.state = state
    after.job.generation += generation_step
    if state not in _RUNNING:
        after.ClearField("lease")
    return after


def role_of(entry: JournalEntry) -> Role.ValueType:
    """The role that the job waits for or is run by. The job must not be over."""
    return ROLE_OF[entry.job.state]


def is_over(entry: JournalEntry) -> bool:
    """Whether the job is in a terminal state."""
    return entry.job.state in OVER


def is_running(entry: JournalEntry) -> bool:
    """Whether a worker runs the job."""
    return entry.job.state in _RUNNING


def name(state: pb.JobState.ValueType) -> str:
    """A state in words, for example `DENOISING`."""
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")


def outcome(entry: JournalEntry) -> Outcome:
    """How the job, which must be over, ended."""
    return "dead_letter" if entry.job.dead_letter else OUTCOMES[entry.job.state]


def rooms(entry: JournalEntry) -> dict[int, int]:
    """Rooms that the job keeps: owner's rank by room id. The encoder's is kept until the job is over, so that a
    transformer that dies costs one denoise and not the encode."""
    held = (d.room for d in (entry.phase1, entry.phase2) if d.HasField("room"))
    return {room.room_id: room.owner_rank for room in held}


def ranks(entry: JournalEntry) -> set[int]:
    """Workers that the job concerns: who runs it, and whose rooms it keeps."""
    return {entry.lease.rank, *rooms(entry).values()} if is_running(entry) else set(rooms(entry).values())


def dispatch_of(entry: JournalEntry) -> Dispatch:
    """The dispatch with which the job's present role takes it up, in the present generation."""
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
    """The job as a worker runs it. Raises LeaseLost for a dispatch of the past or a job that another worker has."""
    _check_current(entry, role, generation)
    if is_running(entry) and not _supersedes(lease, entry.lease):
        raise LeaseLost(f"job {entry.job.job_id} already runs at rank {entry.lease.rank}")
    return _run("take over" if is_running(entry) else "start", entry, lease)


def change_lease(entry: JournalEntry, old: Lease, new: Lease) -> JournalEntry:
    """The running job under another lease. Raises LeaseLost unless it runs under the old one."""
    check_lease(entry, role_of(entry), entry.job.generation, old)
    return _run("take over", entry, new)


def _run(line: str, entry: JournalEntry, lease: Lease) -> JournalEntry:
    role = role_of(entry)
    after = advance(line, entry, RUNNING[role])
    after.lease.CopyFrom(lease)
    setattr(after.job, role_name(role) + "_rank", lease.rank)
    return after


def complete(entry: JournalEntry, role: Role.ValueType, generation: int, lease: Lease) -> JournalEntry:
    """The job after a stage that is done: it waits for the next role, or has SUCCEEDED after the last.

    The caller fills in `phase1`, `phase2` or `artifacts`. Raises LeaseLost unless the job runs under this lease.
    """
    check_lease(entry, role, generation, lease)
    return advance("complete", entry, WAITING[NEXT[role]] if role in NEXT else pb.JOB_STATE_SUCCEEDED)


def hand_back(entry: JournalEntry) -> JournalEntry:
    """The running job as it waits again for the same dispatch: nothing went wrong with it."""
    return advance("hand back", entry, WAITING[role_of(entry)])


def retry(entry: JournalEntry, attempt: pb.Attempt, attempts_max: int, verdict: str = "") -> JournalEntry:
    """The running job as it waits for the same role again; FAILED past a cap, or for `verdict`."""
    return _send_back("retry", entry, attempt, attempts_max, role_of(entry), verdict)


def lose_lease(entry: JournalEntry, attempt: pb.Attempt, attempts_max: int) -> JournalEntry:
    """The running job as it waits for the dispatch that the ring delivers again; FAILED past a cap."""
    return _send_back("lose lease", entry, attempt, attempts_max, role_of(entry))


def go_back(
    entry: JournalEntry, attempt: pb.Attempt, attempts_max: int, is_readable: Callable[[Dispatch], bool]
) -> JournalEntry:
    """The job, whose present room is gone, as it waits for the last role whose own input `is_readable`."""
    role = role_of(entry)
    if role == ROLE_DECODER and not is_readable(entry.phase2):
        role = ROLE_TRANSFORMER
    if role == ROLE_TRANSFORMER and not is_readable(entry.phase1):
        role = ROLE_ENCODER
    return _send_back("go back", entry, attempt, attempts_max, role)


def _send_back(
    line: str, entry: JournalEntry, attempt: pb.Attempt, attempts_max: int, role: Role.ValueType, verdict: str = ""
) -> JournalEntry:
    tried = pb.Job(attempts=[*entry.job.attempts, attempt])
    verdict = verdict or attempts.verdict(tried, attempts_max)
    after = advance(line, entry, pb.JOB_STATE_FAILED if verdict else WAITING[role])
    after.job.attempts.append(attempt)
    after.job.step = 0
    if verdict:
        after.job.dead_letter = True
        after.job.error = verdict
        return after
    if role == ROLE_ENCODER:
        after.ClearField("phase1")
    if role in (ROLE_ENCODER, ROLE_TRANSFORMER):
        after.ClearField("phase2")
    return after


def give_up(entry: JournalEntry, state: pb.JobState.ValueType, error: str) -> JournalEntry:
    """The job ended without a result, in `state`. Raises WrongState when it is over."""
    if is_over(entry):
        raise WrongState(f"job {entry.job.job_id} is already {pb.JobState.Name(entry.job.state)}")
    after = advance("give up", entry, state)
    after.job.error = error
    return after


DispatchKey = tuple[Ring.ValueType, int, int]


def dispatch_key(lease: Lease) -> DispatchKey:
    """The dispatch that a lease is for, as ring, slot and ticket: equal for each of its deliveries."""
    return lease.ring, lease.slot, lease.ticket


def check_lease(entry: JournalEntry, role: Role.ValueType, generation: int, lease: Lease) -> None:
    """Raise LeaseLost unless the job runs in this role and generation under this lease."""
    _check_current(entry, role, generation)
    if not is_running(entry) or entry.lease != lease:
        raise LeaseLost(f"job {entry.job.job_id} no longer runs under this lease")


def _check_current(entry: JournalEntry, role: Role.ValueType, generation: int) -> None:
    job = entry.job
    if is_over(entry) or job.generation != generation or role_of(entry) != role:
        raise LeaseLost(
            f"job {job.job_id} is {pb.JobState.Name(job.state)} in generation {job.generation}; "
            f"this is of role {role_name(role)}, generation {generation}"
        )


def _supersedes(new: Lease, old: Lease) -> bool:
    """Whether the ring delivered the same dispatch again. A repeated call under the same lease counts too."""
    return new == old or (dispatch_key(new) == dispatch_key(old) and new.attempt > old.attempt)
