"""What stands in the journal's tables `meta` and `workers`: who may write, ranks, values. Each is work for a
transaction of the journal's thread.
"""

from __future__ import annotations

from typing import NamedTuple

from triptych.errors import WrongState
from triptych.ids import RANK_MAX

from .journal_database import EPOCH_KEY, Database

COUNTER_MAX = 2**63 - 1
"""SQLite's largest integer: the last epoch, and the last job's sequence."""
LEASE_KEY = "lease"
"""What the controller that may write changes again and again (`standby.py`)."""


class Standing(NamedTuple):
    """Who may write."""

    epoch: int
    lease: bytes
    """Another with each renewal; empty where nobody holds it."""


def standing(db: Database) -> Standing:
    """Who may write at this moment."""
    keys = (EPOCH_KEY, LEASE_KEY)
    values = dict(db.execute("SELECT key, value FROM meta WHERE key IN (?, ?)", keys).fetchall())
    return Standing(int(values.get(EPOCH_KEY, 0)), bytes(values.get(LEASE_KEY, b"")))


def next_epoch(db: Database) -> int:
    """Count up and return the epoch: from now on nobody of an older one writes. Raises WrongState after the last."""
    db.exclude()
    return _increment(db, EPOCH_KEY)


def take_over(db: Database, seen: Standing, lease: bytes) -> int | None:
    """As `next_epoch`, and hold the lease; None where somebody else has changed what was `seen`. Raises InvalidRequest
    for a journal in which the one before found damage."""
    db.exclude()
    if standing(db) != seen:
        return None
    db.check()
    put(db, LEASE_KEY, lease)
    return _increment(db, EPOCH_KEY)


def rank_of(db: Database, instance_id: str) -> int:
    """The rank of a worker's process, or one never given before. Raises WrongState when there is none left."""
    row = db.execute("SELECT rank FROM workers WHERE instance_id = ?", (instance_id,)).fetchone()
    if row:
        return int(row[0])
    if _count(db, "rank") >= RANK_MAX:
        raise WrongState(
            f"all {RANK_MAX} ranks have been given to workers: those that run go on, and new ones need a "
            "controller with another state folder"
        )
    rank = _increment(db, "rank")
    db.execute("INSERT INTO workers VALUES (?, ?)", (instance_id, rank))
    return rank


def get(db: Database, key: str) -> bytes:
    """A stored value, empty when there is none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return bytes(row[0]) if row else b""


def put(db: Database, key: str, value: bytes) -> None:
    """Store a value."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def _count(db: Database, key: str) -> int:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return int(row[0]) if row else 0


def _increment(db: Database, key: str) -> int:
    value = _count(db, key) + 1
    if value > COUNTER_MAX:
        raise WrongState(f"the journal's counter {key} is at its end: use another state folder")
    put(db, key, b"%d" % value)
    return value
