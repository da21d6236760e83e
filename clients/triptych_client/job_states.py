"""What the client knows about jobs: which states are the end, and what the end means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import DeadlinePassed, InvalidRequest, JobCancelled, JobFailed
from triptych.v1 import job_pb2
from triptych.v1.job_pb2 import Job, JobState

TERMINAL_STATES = frozenset(
    (
        job_pb2.JOB_STATE_SUCCEEDED,
        job_pb2.JOB_STATE_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_EXPIRED,
    )
)
"""States that a job never leaves."""
SHOWN_MAX = 5
"""Jobs named in a sentence about a beginning that several have."""


@dataclass(frozen=True)
class Generated:
    """A job that succeeded and its files on this machine."""

    job: Job
    paths: tuple[Path, ...]


def is_over(job: Job) -> bool:
    """Whether the job has ended, one way or another."""
    return job.state in TERMINAL_STATES


def state_name(state: JobState.ValueType) -> str:
    """A state as people write it, for example `denoising`."""
    return enum_name(JobState, state, "JOB_STATE_")


def enum_name(enum: Any, value: int, prefix: str) -> str:
    """A value of an enumeration as people write it; its number where a newer server has sent one not known here."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name.removeprefix(prefix).lower().replace("_", " ")


def seed_words(job: Job) -> str:
    """The seed of a job, or those of its results."""
    return f"seeds {', '.join(map(str, job.seeds))}" if job.seeds else f"seed {job.seed}"


def cut_sentences(job: Job) -> list[str]:
    """What of the job's texts its tokenizers didn't take, a sentence for each."""
    return [
        f"{cut.input}: {cut.tokenizer} cut off the last {cut.token_count} token{'s' if cut.token_count > 1 else ''}"
        for cut in job.tokens_cut
    ]


def ambiguous(wanted: str, found: Sequence[str]) -> InvalidRequest:
    """The error about a beginning that several ids have."""
    shown = ", ".join(found[:SHOWN_MAX]) + (", …" if len(found) > SHOWN_MAX else "")
    return InvalidRequest("job", wanted, f"more of the id: {shown} begin so")


def check_succeeded(job: Job) -> Job:
    """Return a job that succeeded. Raises JobFailed, JobCancelled or DeadlinePassed for one that ended otherwise."""
    match job.state:
        case job_pb2.JOB_STATE_FAILED:
            raise JobFailed(f"{job.job_id} failed: {job.error or 'no reason given'}")
        case job_pb2.JOB_STATE_CANCELLED:
            raise JobCancelled(f"{job.job_id} was cancelled")
        case job_pb2.JOB_STATE_EXPIRED:
            raise DeadlinePassed(f"{job.job_id} did not end before its deadline")
    return job
