"""The journal in SQLite: a file in the state folder, for one controller, or for several on a shared volume.

One controller alone uses a write-ahead log. Several can't: the log's index is memory that the hosts don't share. Then
SQLite keeps a rollback journal, and needs of the volume what `docs/standby.md` says.

| SQLite says | it means | what happens |
| --- | --- | --- |
| FULL; IOERR, CANTOPEN where a probe finds no space or quota | the disk is full | JournalFull: nothing was changed |
| BUSY, LOCKED, NOMEM | somebody else holds it, or memory is short | JournalFull: this passes, too |
| CORRUPT, NOTADB, READONLY, PERM; IOERR, CANTOPEN otherwise | it is damaged, or may not be written | JournalDamaged |
| anything else | a bug | the caller gets it |
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from triptych.errors import InvalidRequest, JournalDamaged, JournalFull

from . import journal_file

log = logging.getLogger(__name__)

PROBE_BYTES = 2**16
"""These fit on a disk that isn't full: more than SQLite writes for one change of a job's state."""
VACUUM_PAGES = 1024
"""Given back to the disk in one piece: 4 MiB, for which others wait a quarter of a second on a busy machine."""
OPENING_S = 5.0
"""How long another controller with a lease may take to open the file, before it counts as one without."""
LOCK_LOOK_S = 0.05
"""Between two looks at whether it has."""

_TRANSIENT = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)
_MAYBE_FULL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_BROKEN_FILE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BROKEN = (*_BROKEN_FILE, *_MAYBE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_REMEDY = "look at its disk and who may write there, or put a backup in its place"


class SqliteDatabase:
    """An open file."""

    errors: type[Exception] = sqlite3.Error
    is_reachable = True

    def __init__(self, db: sqlite3.Connection, folder: Path, lock: TextIO | None = None) -> None:
        """`lock` is closed with it."""
        self._db = db
        self._folder = folder
        self._lock = lock

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """See `Database.execute`."""
        return self._db.execute(sql, values)

    def begin(self) -> None:
        """See `Database.begin`."""
        self._db.execute("BEGIN IMMEDIATE")

    def exclude(self) -> None:
        """See `Database.exclude`. Each transaction here excludes all others."""

    def commit(self) -> None:
        """See `Database.commit`."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """See `Database.rollback`. SQLite ends a transaction by itself on some errors."""
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def verdict(self, error: Exception, *, in_commit: bool) -> Exception:
        """See `Database.verdict`, and the table above. A commit that fails is undone."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest says more of the same
        if code in _TRANSIENT or (code in _MAYBE_FULL and _is_full(self._folder)):
            return JournalFull(f"the journal can't be written now ({error}); try again later")
        if code not in _BROKEN:
            return error
        if code in _BROKEN_FILE:
            journal_file.suspect(self._folder)
        log.critical("the journal in %s can't be used (%s): %s", self._folder, error, _REMEDY)
        return JournalDamaged(f"the journal can't be used ({error})")

    def check(self) -> None:
        """See `Database.check`."""
        if journal_file.is_suspect(self._folder):
            journal_file.check_structure(self._db, self._folder)

    def check_entries(self, last: int) -> int | None:
        """See `Database.check_entries`."""
        return journal_file.check_page(self._db, "state", str(self._folder), last)

    def shrink(self) -> bool:
        """See `Database.shrink`."""
        (free_pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
        if free_pages <= VACUUM_PAGES:
            return False  # soon used again
        self._db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        (left_pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return bool(left_pages < free_pages)  # not where the file can't shrink, see `journal_file`

    def close(self) -> None:
        """See `Database.close`."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()


class SqliteStore:
    """A state folder. It is locked as long as its database is open."""

    def __init__(self, folder: Path, *, is_shared: bool = False) -> None:
        """`is_shared` where several controllers open it, of which a lease says who may write."""
        self._folder = folder
        self._is_shared = is_shared
        self.name = str(folder)

    def open(self) -> SqliteDatabase:
        """See `Store.open`. Raises InvalidRequest for a folder that can't be used, or that others use."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds prompts
            lock = (self._folder / "lock").open("w")
        except OSError as error:
            raise InvalidRequest("state", self.name, f"a folder that can be written ({error})") from error
        with contextlib.ExitStack() as undo:
            undo.callback(lock.close)
            is_first = self._take(lock)
            try:
                db = journal_file.open_file(self._folder, is_shared=self._is_shared, is_first=is_first)
            except sqlite3.Error as error:
                raise InvalidRequest("state", self.name, f"a journal that SQLite can read ({error})") from error
            if self._is_shared:
                fcntl.flock(lock, fcntl.LOCK_SH)
            undo.pop_all()
        return SqliteDatabase(db, self._folder, lock)

    def _take(self, lock: TextIO) -> bool:
        """Take the folder's lock: alone, True; or beside others that share it."""
        deadline_s = time.monotonic() + (OPENING_S if self._is_shared else 0.0)
        while True:
            for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if self._is_shared else (fcntl.LOCK_EX,):
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                    return kind == fcntl.LOCK_EX
            if time.monotonic() >= deadline_s:
                alone = "a folder that no other controller uses" + (", or only such with lease_s" * self._is_shared)
                raise InvalidRequest("state", self.name, alone)
            threading.Event().wait(LOCK_LOOK_S)  # no lock can be waited for with a bound


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
