"""The one thread that owns the journal's database, and what becomes of its errors.

Calls that arrive while the disk is busy share the next commit, so that a burst of jobs costs a few fsyncs, not one
each. A call is answered when it is on disk.

| SQLite says | it means | what happens |
| --- | --- | --- |
| FULL; IOERR, CANTOPEN where a probe finds no space or quota | the disk is full | JournalFull: nothing was changed |
| BUSY, LOCKED, NOMEM | somebody else holds it, or memory is short | JournalFull: this passes, too |
| CORRUPT, NOTADB, READONLY, PERM; IOERR, CANTOPEN otherwise | it is damaged, or may not be written | JournalDamaged |
| anything else | a bug | the caller gets it |

After JournalDamaged every call ends so, and the controller with them: nobody knows what holds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from triptych.errors import InvalidRequest, JournalDamaged, JournalFull

from . import journal_file

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

COMMIT_BATCH_MAX = 256
"""Calls that share a commit: bounds how long the first of them waits."""
PROBE_BYTES = 2**16
"""These fit on a disk that isn't full: more than SQLite writes for one change of a job's state."""

_TRANSIENT = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)
_MAYBE_FULL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_BROKEN_FILE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BROKEN = (*_BROKEN_FILE, *_MAYBE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


class JournalThread:
    """Runs work on the database of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._damage: JournalDamaged | None = None
        """The thread's own: once it is set nothing more is done, since nobody knows what holds."""

    async def start(self) -> None:
        """Open the database. Raises InvalidRequest."""
        self._thread.start()
        try:
            await asyncio.wrap_future(self._opened)
        except sqlite3.Error as error:
            accepted = f"a journal that SQLite can read ({error})"
            raise InvalidRequest("state", str(self._folder), accepted) from error

    async def close(self) -> None:
        """Do what is waiting, and end."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    async def call(self, work: Work[Result]) -> Result:
        """Do `work` in a transaction. Raises JournalFull, JournalDamaged, and what `work` raises."""
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # it is done, also where the caller goes away
        self._calls.put(_Call(work, future))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        try:
            db = journal_file.open_file(self._folder)
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

    def _commit(self, db: sqlite3.Connection, calls: Sequence[_Call]) -> None:
        """Run the calls in one transaction; none is delivered before it is on disk.

        Where the disk can't take them together each is tried alone, so that reads and small writes go on. A call that
        fails alone leaves the journal as it was.
        """
        if not calls:
            return
        if self._damage is not None:
            for call in calls:
                call.deliver(self._damage)
            return
        try:
            _transaction(db, calls)
        except sqlite3.Error as error:
            verdict = self._verdict(error)
            if len(calls) == 1:
                calls[0].deliver(verdict)
                return
            for call in calls:
                self._commit(db, [call])
        else:
            for call in calls:
                call.deliver()

    def _verdict(self, error: sqlite3.Error) -> BaseException:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest says more of the same
        if code in _TRANSIENT or (code in _MAYBE_FULL and _is_full(self._folder)):
            return JournalFull(f"the journal can't be written now ({error}); try again later")
        if code not in _BROKEN:
            return error
        if code in _BROKEN_FILE:
            journal_file.suspect(self._folder)
        self._damage = JournalDamaged(f"the journal can't be used ({error})")
        remedy = "look at its disk and who may write there, or put a backup in its place"
        log.critical("the journal in %s can't be used (%s): %s", self._folder, error, remedy)
        return self._damage


@dataclass
class _Call:
    """Work for the journal's thread, and where to deliver its result once that is on disk."""

    work: Work[Any]
    future: concurrent.futures.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def run(self, db: sqlite3.Connection) -> None:
        self.error = None
        try:
            self.result = self.work(db)
        except sqlite3.Error:
            raise  # the transaction may be gone, and with it what others did in it
        except Exception as error:  # noqa: BLE001  (delivered to the caller)
            self.error = error

    def deliver(self, error: BaseException | None = None) -> None:
        if failure := error or self.error:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self.result)


def _transaction(db: sqlite3.Connection, calls: Sequence[_Call]) -> None:
    """All of it or nothing. SQLite ends a transaction by itself on some errors, and commits alone what comes after."""
    try:
        db.execute("BEGIN IMMEDIATE")
        for call in calls:
            call.run(db)
        db.execute("COMMIT")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _is_full(folder: Path) -> bool:
    """Whether a file can't be written because there is no space, or no quota, for it."""
    probe = folder / "probe"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return False
