"""A dead rank whose end isn't in the journal yet."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.v1.job_pb2 import AttemptKind


@dataclass(frozen=True)
class Grave:
    """What must not be forgotten of a rank until the journal has taken what follows from its end."""

    rank: int
    reason: str
    kind: AttemptKind.ValueType
    """What its end is to the job that it ran."""
    handed_back: frozenset[tuple[int, int, int]]
    """Dispatches that it had given up itself."""
    redelivered: frozenset[str]
    """Jobs whose dispatch the ring has put up again."""
