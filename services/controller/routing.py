"""Choosing the next worker of a job that one has failed: another, where there is one.

Pure: it reads the job's record and the fleet's, and changes neither.
"""

from __future__ import annotations

import zlib

from triptych.v1.dispatch_pb2 import Role
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.worker_pb2 import WORKER_STATE_BUSY, WORKER_STATE_FULL

from . import attempts
from .fleet import Fleet


def elsewhere(entry: JournalEntry, role: Role.ValueType, fleet: Fleet) -> int:
    """The rank that should run a role of the job; 0, anyone, where all have failed it equally often.

    Those who are idle come before those who are busy, and these before those without space.
    """
    failed = attempts.failures(entry.job, role)
    able = [member for member in fleet.alive(role) if member.takes_work]
    fewest = min((failed.get(member.rank, 0) for member in able), default=0)
    best = [member for member in able if failed.get(member.rank, 0) == fewest]
    if len(best) == len(able):
        return 0
    waits = {WORKER_STATE_BUSY: 1, WORKER_STATE_FULL: 2}
    shortest = min(waits.get(member.status.state, 0) for member in best)
    ranks = sorted(member.rank for member in best if waits.get(member.status.state, 0) == shortest)
    return ranks[zlib.crc32(entry.job.job_id.encode()) % len(ranks)]  # so that several don't all go to one
