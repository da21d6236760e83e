"""Identities: jobs, worker processes, rooms, ranks."""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

RANK_BITS: Final = 28
"""268 million workers in a fleet's life: one a second for eight years. Ranks are never reused. A ring's state word has
as many bits for the rank (`rings/layout.py`)."""
RANK_MAX: Final = 2**RANK_BITS - 1
ROOM_COUNTER_BITS: Final = 64 - RANK_BITS
"""Rooms of one worker: 2^36, a thousand a second for two years. Then the worker ends and starts with another rank."""
ROOM_COUNTER_MAX: Final = 2**ROOM_COUNTER_BITS - 1


def new_job_id() -> str:
    """A fresh job id."""
    return "job-" + uuid.uuid4().hex


def new_instance_id() -> str:
    """A fresh id of a worker's process."""
    return uuid.uuid4().hex


def instance_sha256(instance_id: str) -> str:
    """What may be shown of an instance id: it names the instance to those who know the id, and to nobody else."""
    return hashlib.sha256(instance_id.encode()).hexdigest()


def room_id(rank: int, counter: int) -> int:
    """The id of a worker's room number `counter`. No other room ever has it, because ranks are never reused."""
    assert 0 < rank <= RANK_MAX, rank
    assert 0 <= counter < 2**ROOM_COUNTER_BITS, counter
    return rank << ROOM_COUNTER_BITS | counter
