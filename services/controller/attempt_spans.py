"""The span of each attempt, recorded at its end by the one process that knows how every attempt ends.

A worker that dies takes its own spans with it. So the controller gives each attempt's span its id when the attempt
begins, the worker puts its spans into it, and whichever controller sees the attempt end records it: also after a
restart, for what it needs stands in the journal. The span of an attempt that ended badly has the status ERROR.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from triptych import telemetry
from triptych.roles import role_name
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import job_pb2
from triptych.v1.journal_pb2 import JournalEntry

from . import jobs


class End(NamedTuple):
    """How an attempt ended. `error` is empty where nothing went wrong."""

    outcome: str
    error: str = ""
    kind: str | None = None


def begin(before: JournalEntry, after: JournalEntry) -> None:
    """Put the attempt that begins with `after` into it, unless this is the attempt of `before`, told of once more."""
    if before.lease == after.lease:
        return
    after.attempt_traceparent = telemetry.reserve(after.traceparent)
    after.attempt_time.GetCurrentTime()
    if jobs.is_running(before):  # the ring took the dispatch from another worker; when isn't known here
        after.ClearField("ready_time")


def tell(before: JournalEntry, after: JournalEntry, response: pb.StartPhaseResponse) -> None:
    """Tell a worker which attempt it has begun, which one came before, and how long the job had waited."""
    response.traceparent = after.attempt_traceparent
    if before.lease != after.lease:
        response.earlier_traceparent = before.attempt_traceparent
    if after.HasField("ready_time"):
        wait_ns = after.attempt_time.ToNanoseconds() - after.ready_time.ToNanoseconds()
        response.wait.FromNanoseconds(max(0, wait_ns))


def record(before: JournalEntry, after: JournalEntry) -> None:
    """Record the attempt that has ended between two entries of a job, if one has."""
    failed = after.job.attempts[len(before.job.attempts) :]
    was_running = jobs.is_running(before)
    goes_on = jobs.is_running(after) and after.attempt_traceparent == before.attempt_traceparent
    if goes_on or not (was_running or failed):
        return
    end = _end_of(before, after, failed[-1] if failed else None)
    end_ns = after.job.update_time.ToNanoseconds()
    start_ns = end_ns  # where the job waited, and its room was lost, or an older controller noted no time
    if was_running and before.HasField("attempt_time"):
        start_ns = before.attempt_time.ToNanoseconds()
    role = role_name(failed[-1].role if failed else jobs.role_of(before))
    telemetry.record(
        f"attempt {role}",
        parent=before.traceparent,
        start_ns=start_ns,
        end_ns=end_ns,
        reserved=before.attempt_traceparent if was_running else "",
        error=end.error,
        job_id=before.job.job_id,
        role=role,
        rank=before.lease.rank if was_running else failed[-1].rank,
        generation=before.job.generation,
        attempt=before.lease.attempt if was_running else None,
        outcome=end.outcome,
        kind=end.kind,
        reason=end.error or None,
        dead_letter=after.job.dead_letter or None,
    )


def refused(entry: JournalEntry, token: pb.PhaseToken, reason: str) -> None:
    """Record a completion that came too late: the job was another worker's by then, or over."""
    now = Timestamp()
    now.GetCurrentTime()
    role = role_name(token.role)
    telemetry.record(
        "completion.refused",
        parent=entry.traceparent,
        start_ns=now.ToNanoseconds(),
        end_ns=now.ToNanoseconds(),
        error=reason,
        job_id=token.job_id,
        role=role,
        rank=token.lease.rank,
        generation=token.generation,
        attempt=token.lease.attempt,
        reason=reason,
    )


def _end_of(before: JournalEntry, after: JournalEntry, failed: job_pb2.Attempt | None) -> End:
    if failed is not None:
        kind = telemetry.kind_name(failed.kind)
        return End("failed", failed.reason or kind, kind)
    if jobs.is_running(after):
        return End("failed", f"its lease was lost: rank {after.lease.rank} runs the job now", "lease_lost")
    state = after.job.state
    if state == job_pb2.JOB_STATE_CANCELLED:
        return End("cancelled")
    if state == job_pb2.JOB_STATE_EXPIRED:
        return End("failed", after.job.error, "expired")
    if state == job_pb2.JOB_STATE_FAILED:  # the sentence may hold the client's values, which are the client's only
        return End("failed", "the request can't be met", "invalid_request")
    if not jobs.is_over(after) and jobs.role_of(after) == jobs.role_of(before):
        return End("handed_back")
    return End("completed")
