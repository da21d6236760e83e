"""The one thread that owns the journal's database, and what becomes of its errors.

Calls that arrive while the disk is busy share the next commit, so that a burst of jobs costs a few fsyncs, not one
each. A call is answered when it is on disk.

After JournalDamaged or TakenOver every call ends so, and the controller with them: nobody knows what holds, or another
controller decides it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from triptych.errors import JournalDamaged, TakenOver

from .journal_database import EPOCH_KEY, Database, Store

Result = TypeVar("Result")
Work = Callable[[Database], Result]

COMMIT_BATCH_MAX = 256
"""Calls that share a commit: bounds how long the first of them waits."""
CLOSING_S = 10.0
"""How long what is waiting may take at the end: as long as a slow disk needs. A database that is cut off may take it
all, and then ends with the process."""


class JournalThread:
    """Runs work on a store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.epoch: int | None = None
        """Set once by the controller that takes over: no transaction begins in another epoch."""
        self._end: JournalDamaged | TakenOver | None = None
        """The thread's own: once it is set nothing more is done."""

    async def start(self) -> None:
        """Open the database. Raises as `Store.open`."""
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    async def close(self) -> None:
        """Do what is waiting, and end."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, CLOSING_S)

    async def call(self, work: Work[Result]) -> Result:
        """Do `work` in a transaction. Raises JournalFull, JournalDamaged, TakenOver, and what `work` raises."""
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # it is done, also where the caller goes away
        self._calls.put(_Call(work, future))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        try:
            db = self._store.open()
        except Exception as error:  # noqa: BLE001  (delivered: its opener would wait indefinitely)
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        with contextlib.closing(db):
            running = True
            while running:
                batch = [self._calls.get()]
                while len(batch) < COMMIT_BATCH_MAX and not self._calls.empty():
                    batch.append(self._calls.get())
                running = None not in batch
                self._commit(db, [call for call in batch if call])

    def _commit(self, db: Database, calls: Sequence[_Call]) -> None:
        """Run the calls in one transaction; none is delivered before it is on disk.

        Where the disk can't take them together each is tried alone, so that reads and small writes go on. A call that
        fails alone leaves the journal as it was.
        """
        if not calls:
            return
        failure: Exception | None = self._end or self._transaction(db, calls)
        if isinstance(failure, JournalDamaged | TakenOver):
            self._end = failure
        elif failure is not None and len(calls) > 1 and db.is_reachable:
            for call in calls:
                self._commit(db, [call])
            return
        for call in calls:
            call.deliver(failure)

    def _transaction(self, db: Database, calls: Sequence[_Call]) -> Exception | None:
        """All of it or nothing; why nothing."""
        in_commit = False
        try:
            db.begin()
            self._check_epoch(db)
            for call in calls:
                call.run(db)
            in_commit = True
            db.commit()
        except TakenOver as error:
            db.rollback()
            return error
        except db.errors as error:
            db.rollback()
            return db.verdict(error, in_commit=in_commit)
        return None

    def _check_epoch(self, db: Database) -> None:
        """Raise TakenOver where another controller has counted the epoch up."""
        if self.epoch is None:
            return
        (epoch,) = db.execute("SELECT value FROM meta WHERE key = ?", (EPOCH_KEY,)).fetchone() or (0,)
        if int(epoch) != self.epoch:
            raise TakenOver(f"another controller took over in epoch {int(epoch)}; this one is of epoch {self.epoch}")


@dataclass
class _Call:
    """Work for the journal's thread, and where to deliver its result once that is on disk."""

    work: Work[Any]
    future: concurrent.futures.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def run(self, db: Database) -> None:
        self.error = None
        try:
            self.result = self.work(db)
        except db.errors:
            raise  # the transaction may be gone, and with it what others did in it
        except Exception as error:  # noqa: BLE001  (delivered to the caller)
            self.error = error

    def deliver(self, error: BaseException | None = None) -> None:
        if failure := error or self.error:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self.result)
