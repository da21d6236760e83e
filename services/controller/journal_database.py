"""What the journal asks of a database. It speaks one SQL: that which SQLite and PostgreSQL have in common.

`?` stands for a value. A list of values is never empty: `IN ()` isn't SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

EPOCH_KEY = "epoch"
"""In the table `meta`: the epoch of the controller that may write. It rises whenever one takes over."""
PAGE_ENTRIES = 256
"""Read in one transaction: some 5 ms. They hold no other controller up, and PostgreSQL ends the session of one that is
idle in a transaction."""


class Rows(Protocol):
    """What a statement found or changed."""

    @property
    def rowcount(self) -> int:
        """Rows that it changed."""

    def fetchone(self) -> Any:
        """The next row; None after the last."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """An open database. It belongs to the journal's thread."""

    errors: type[Exception]
    """What its statements raise. The transaction may then be over."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement."""

    def begin(self) -> None:
        """Begin a transaction, in which nobody takes over."""

    def exclude(self) -> None:
        """Wait until no other controller is in a transaction, and let none begin one before the end of this."""

    def commit(self) -> None:
        """End the transaction: all of it is on disk."""

    def rollback(self) -> None:
        """End the transaction, if there still is one: nothing was changed. Never raises."""

    def verdict(self, error: Exception, *, in_commit: bool) -> Exception:
        """What an error of `errors` means: JournalFull where nothing was changed and it passes, JournalDamaged where
        nothing holds any more; else the error itself, which is a bug."""

    @property
    def is_reachable(self) -> bool:
        """False after the connection broke, until the next `begin` makes another."""

    def check(self) -> None:
        """Look at its own structure where a statement has found damage. Raises InvalidRequest."""

    def check_entries(self, last: int) -> int | None:
        """Look at a page of entries behind sequence `last`; the last one's, None where there are no more.

        Raises InvalidRequest for one that can't be read.
        """

    def shrink(self) -> bool:
        """Give a piece of free space back to the disk. Returns whether there is more."""

    def close(self) -> None:
        """Close it."""


class Store(Protocol):
    """Where a journal is."""

    name: str
    """For logs: without what opens it."""

    def open(self) -> Database:
        """Open it, making it where needed; in the journal's thread.

        Raises InvalidRequest where it can't be used or is in use, MissingExtra, Unavailable.
        """
