"""The account at the end of a run: every job that was accepted has one end, and it is one that somebody asked for.

    accepted = succeeded + refused by request + cancelled by request + expired by request

Pure: takes the controller's last list of jobs, what the clients had acknowledged, and what the plan asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.history import Violation
from tests.chaos.plan import Submission
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_EXPIRED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    Job,
)
from triptych_client.job_states import is_over, state_name


@dataclass
class Account:
    """Counts of one run, and what is wrong with them."""

    accepted: int = 0
    succeeded: int = 0
    refused: int = 0
    cancelled: int = 0
    expired: int = 0
    redeliveries: int = 0
    """Attempts that were undone, of all jobs together."""
    lost: int = 0
    """Acknowledged and gone, never over, or ended in a way that nobody asked for."""
    wrong_bits: int = 0
    doubled: int = 0
    violations: list[Violation] = field(default_factory=list)


def settle(
    jobs: Sequence[Job],
    submissions: Mapping[str, Submission],
    acknowledged: Mapping[str, str],
    expected_digests: Mapping[str, str],
    success_counts: Mapping[str, int],
) -> Account:
    """Draw up the account.

    Args:
        jobs: All jobs, as the controller lists them at the end.
        submissions: What was asked for, by request id.
        acknowledged: Job by request id, as the clients were told.
        expected_digests: SHA-256 of the result that each request id must have.
        success_counts: How often the controllers' logs say that a job succeeded.
    """
    account = Account(accepted=len(jobs), redeliveries=sum(len(job.attempts) for job in jobs))
    found = {job.request_id: job.job_id for job in jobs}
    for request_id, job_id in acknowledged.items():
        if found.get(request_id) != job_id:
            account.lost += 1
            account.violations.append(Violation("lost", job_id, f"{request_id} was acknowledged as {job_id}"))
    for request_id, count in Counter(job.request_id for job in jobs).items():
        if count > 1:
            account.doubled += 1
            account.violations.append(Violation("doubled", found[request_id], f"{request_id} made {count} jobs"))
    for job in jobs:
        submission = submissions.get(job.request_id)
        if submission is None:
            account.violations.append(Violation("invented", job.job_id, f"nobody asked for {job.request_id!r}"))
            continue
        _count(account, job)
        account.violations += _end_is_right(account, job, submission)
        if job.state == JOB_STATE_SUCCEEDED:
            account.violations += _result_is_right(account, job, expected_digests[job.request_id])
        if success_counts.get(job.job_id, 0) > 1:
            account.doubled += 1
            count = success_counts[job.job_id]
            account.violations.append(Violation("doubled", job.job_id, f"{job.job_id} succeeded {count} times"))
    return account


def _count(account: Account, job: Job) -> None:
    account.succeeded += job.state == JOB_STATE_SUCCEEDED
    account.refused += job.state == JOB_STATE_FAILED
    account.cancelled += job.state == JOB_STATE_CANCELLED
    account.expired += job.state == JOB_STATE_EXPIRED


def _end_is_right(account: Account, job: Job, submission: Submission) -> Iterator[Violation]:
    asked_for = {
        JOB_STATE_SUCCEEDED: not submission.is_refused,
        JOB_STATE_FAILED: submission.is_refused,
        JOB_STATE_CANCELLED: submission.cancel_after_s is not None,
        JOB_STATE_EXPIRED: submission.deadline_s is not None,
    }
    if is_over(job) and asked_for[job.state]:
        return
    account.lost += 1
    shown = f"{job.job_id} ({job.request_id}) is {state_name(job.state)}: {job.error}".rstrip(": ")
    yield Violation("end", job.job_id, shown)


def _result_is_right(account: Account, job: Job, expected: str) -> Iterator[Violation]:
    found = [artifact.sha256.hex() for artifact in job.artifacts]
    if found != [expected]:
        account.wrong_bits += 1
        yield Violation("bits", job.job_id, f"{job.job_id} ({job.request_id}) has {found}, not {expected}")
