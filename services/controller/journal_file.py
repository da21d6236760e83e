"""The journal's file: its layout, and what is looked at before a controller builds on it.

A file that isn't wholly understood is left exactly as it is, and the controller doesn't start.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from google.protobuf.message import DecodeError

from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.journal_pb2 import JournalEntry

NAME = "journal.db"
FORMAT_VERSION = 2
"""Layout of the database. A state folder of another version is refused, never guessed at."""

_CREATE = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    request_id TEXT NOT NULL,
    retry_of TEXT UNIQUE,
    state INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    entry BLOB NOT NULL,
    request BLOB NOT NULL,
    UNIQUE (client, request_id)
);
CREATE INDEX jobs_by_state ON jobs (state, sequence);
CREATE INDEX jobs_by_client ON jobs (client, sequence);
CREATE INDEX dead_letters ON jobs (sequence) WHERE dead;
CREATE TABLE workers (instance_id TEXT PRIMARY KEY, rank INTEGER NOT NULL UNIQUE);
INSERT INTO meta VALUES ('format', {FORMAT_VERSION});
COMMIT;
"""
"""All or nothing: half a journal would be refused for ever. `retry_of` is NULL for all but retries of dead letters,
of which there is one for each."""


def open_file(folder: Path) -> sqlite3.Connection:
    """Open the journal of a state folder, making it where there is none.

    Raises InvalidRequest for one of another format or with damage, sqlite3.Error for what SQLite can't open.
    """
    _keep_private(folder)
    db = sqlite3.connect(folder / NAME, isolation_level=None)
    try:
        is_new = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,)
        if not is_new:
            _check_format(db, folder)
            _check_content(db, folder)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if is_new:
            db.executescript(_CREATE)
    except BaseException:
        db.close()
        raise
    return db


def _keep_private(folder: Path) -> None:
    """Prompts, and what opens rooms, are their owner's only: also in a folder that others may read, or a copy.

    SQLite gives files that it adds the journal's own mode.
    """
    try:
        os.close(os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o600))
        for file in folder.glob(f"{NAME}*"):
            file.chmod(0o600)
    except OSError as error:
        raise InvalidRequest("state", str(folder), f"a folder whose journal is ours ({error})") from error


def _check_format(db: sqlite3.Connection, folder: Path) -> None:
    if db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'meta'").fetchone() == (0,):
        raise InvalidRequest("state", str(folder), f"a folder whose {NAME} was made by a controller")
    found = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    if found != (FORMAT_VERSION,):
        shown = found[0] if found else "none"
        raise InvalidRequest("state", str(folder), f"a journal of format {FORMAT_VERSION}; this has {shown}")


def _check_content(db: sqlite3.Connection, folder: Path) -> None:
    """SQLite looks at its own structure, and every message must be one. A gigabyte takes a second."""
    accepted = "a journal without damage; put a backup in its place"
    (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise InvalidRequest("state", str(folder), f"{accepted} ({answer})")
    for job_id, entry, request in db.execute("SELECT job_id, entry, request FROM jobs"):
        try:
            JournalEntry.FromString(entry)
            GenerationRequest.FromString(request)
        except DecodeError as error:
            raise InvalidRequest("state", str(folder), f"{accepted} (job {job_id!r} can't be read: {error})") from error
