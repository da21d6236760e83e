"""Which worker a phase is meant for, where not all are equally good for it. Pure.

First come those that have the memory, by what they have met: a job isn't given to a worker where jobs of its size run
out again and again, while others take work. Among these come those that have failed the job least. A job that has just
run out of memory then goes where no other role uses the same memory at this moment, if there is such a place; every
other goes to one that is idle before one that is busy, and to this before one without space.

None of this makes a job wait: where nobody is better than the others, anyone may claim it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from triptych.v1 import job_pb2, worker_pb2
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.journal_pb2 import JournalEntry

_WAITS = {worker_pb2.WORKER_STATE_BUSY: 1, worker_pb2.WORKER_STATE_FULL: 2}


class Candidate(NamedTuple):
    """A worker of the role that takes work."""

    rank: int
    state: worker_pb2.WorkerState.ValueType
    pixels_failed_min: float = 0.0
    """The size from which jobs run out of memory there; 0 for no bound."""
    is_quiet: bool = True
    """Whether no other worker that shares its memory is busy."""


def choose(entry: JournalEntry, role: Role.ValueType, candidates: Sequence[Candidate]) -> int:
    """The rank that should run a role of the job; 0 (anyone) where all are equally good."""
    job = entry.job
    able = [one for one in candidates if _has_memory(one, entry.pixels)] or candidates
    failures = Counter(attempt.rank for attempt in job.attempts if attempt.role == role)
    fewest = min((failures[one.rank] for one in able), default=0)
    best = [one for one in able if failures[one.rank] == fewest]
    if len(best) == len(candidates):
        return 0
    ran_out = _ran_out(job, role)

    def unfit(one: Candidate) -> tuple[bool, int]:
        return ran_out and not one.is_quiet, _WAITS.get(one.state, 0)

    least = min(map(unfit, best))
    ranks = sorted(one.rank for one in best if unfit(one) == least)
    return ranks[zlib.crc32(job.job_id.encode()) % len(ranks)]  # so that several don't all go to one


def _has_memory(one: Candidate, pixels: float) -> bool:
    return not one.pixels_failed_min or pixels < one.pixels_failed_min


def _ran_out(job: job_pb2.Job, role: Role.ValueType) -> bool:
    own = [attempt.kind for attempt in job.attempts if attempt.role == role]
    return bool(own) and own[-1] == job_pb2.ATTEMPT_KIND_OUT_OF_MEMORY
