"""The journal's file: its layout, and the checks before a controller builds on it.

A file that isn't wholly understood is left exactly as it is, and the controller doesn't start.

Requests have a table of their own, so that neither a change of a job's state nor a start reads or writes them. They go
when their job is over; only dead letters keep theirs, to be tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
from pathlib import Path

from google.protobuf.message import DecodeError

from triptych.config import JOURNAL_FILE
from triptych.errors import InvalidRequest
from triptych.model import trees
from triptych.v1.job_pb2 import GenerationRequest, Media
from triptych.v1.journal_pb2 import JournalEntry

from .journal_database import PAGE_ENTRIES, Database

log = logging.getLogger(__name__)

SUSPECT = "journal.suspect"
"""Its presence asks for a look at the whole file, requests and all, before it is used again."""
FORMAT_VERSION = 3
"""Layout of the database. Format 2 is brought up to it; another version is refused, never guessed at."""
UNDAMAGED = "a journal without damage; put a backup in its place"
BUSY_S = 5.0
"""How long a statement waits for another process's lock."""
WAL_BYTES_MAX = 64 * 2**20
"""The write-ahead log is cut back to this once SQLite has moved it into the file."""

_TABLES = """
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    request_id TEXT NOT NULL,
    retry_of TEXT UNIQUE,
    state INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    ended_s REAL,
    kept_bytes INTEGER NOT NULL,
    entry BLOB NOT NULL,
    UNIQUE (client, request_id)
);
CREATE INDEX jobs_by_state ON jobs (state, sequence);
CREATE INDEX jobs_by_client ON jobs (client, sequence);
CREATE INDEX jobs_kept ON jobs (client, ended_s, kept_bytes) WHERE ended_s IS NOT NULL;
CREATE INDEX jobs_by_end ON jobs (ended_s) WHERE ended_s IS NOT NULL;
CREATE INDEX dead_letters ON jobs (sequence) WHERE dead;
CREATE TABLE requests (job_id TEXT PRIMARY KEY, request BLOB NOT NULL);
"""
"""`retry_of` is NULL for all but retries of dead letters, of which there is one for each; `ended_s` until the job is
over; `kept_bytes` is what a finished job still takes: its results, and a dead letter's request."""

_CREATE = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
{_TABLES}
CREATE TABLE workers (instance_id TEXT PRIMARY KEY, rank INTEGER NOT NULL UNIQUE);
INSERT INTO meta VALUES ('format', {FORMAT_VERSION});
COMMIT;
"""
"""All or nothing: half a journal would be refused indefinitely."""


def open_file(folder: Path, *, is_shared: bool = False, is_first: bool = True) -> sqlite3.Connection:
    """Open the journal of a state folder, making it where there is none.

    In a folder that is shared, the first to open it makes and checks it; the others look at its format only.
    Raises InvalidRequest for one of another format or with damage, sqlite3.Error for what SQLite can't open.
    """
    _keep_private(folder)
    db = sqlite3.connect(folder / JOURNAL_FILE, timeout=BUSY_S, isolation_level=None)
    try:
        if not is_first:
            _check_format(db, folder)
            db.execute("PRAGMA synchronous = FULL")
            return db
        is_new = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,)
        found = FORMAT_VERSION if is_new else _check_format(db, folder)
        if not is_new:
            check_structure(db, folder)
            if not is_shared or found == 2:  # else `Lease.wait` does: others wait for the folder's lock
                check_entries(db, "state", str(folder))
        else:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # or the file would never shrink
        # A log's index is in memory, which hosts don't share.
        db.execute(f"PRAGMA journal_mode = {'TRUNCATE' if is_shared else 'WAL'}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        if is_new:
            db.executescript(_CREATE)
        if found == 2:
            _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _keep_private(folder: Path) -> None:
    """Prompts, and what opens rooms, are their owner's only: also in a folder that others may read, or a copy.

    SQLite gives files that it adds the journal's own mode.
    """
    try:
        os.close(os.open(folder / JOURNAL_FILE, os.O_RDWR | os.O_CREAT, 0o600))
        for file in folder.glob(f"{JOURNAL_FILE}*"):
            file.chmod(0o600)
    except OSError as error:
        raise InvalidRequest("state", str(folder), f"a folder whose journal is ours ({error})") from error


def suspect(folder: Path) -> None:
    """Have the next start look at the whole file."""
    with contextlib.suppress(OSError):
        (folder / SUSPECT).touch()


def digest_of(request: GenerationRequest) -> bytes:
    """A digest of a request in 32 bytes, as the client sent it: without a seed, which may have been drawn and stands in
    the job, without the bytes that uploads and URLs stand for, and without adapters' digests, which are filled in. The
    request's trees are of checked size."""
    seed = request.seed if request.HasField("seed") else None
    request.ClearField("seed")  # and back: a copy of a large request takes as long as all the rest
    uploaded = [(leaf, leaf.data) for _place, leaf in trees.file_leaves(request) if _is_fetched(leaf)]
    for leaf, _data in uploaded:
        leaf.ClearField("data")
    pinned = [(adapter, adapter.digest) for adapter in request.adapters]
    for adapter, _digest in pinned:
        adapter.ClearField("digest")
    try:
        return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    finally:
        if seed is not None:
            request.seed = seed
        for leaf, data in uploaded:
            leaf.data = data
        for adapter, digest in pinned:
            adapter.digest = digest


def _is_fetched(leaf: trees.FileLeaf) -> bool:
    """Whether the controller put the bytes into this file of a request."""
    return bool(leaf.upload_id or (isinstance(leaf, Media) and leaf.url))


def kept_bytes(entry: JournalEntry) -> int:
    """The bytes that a finished job takes on disks."""
    results = sum(artifact.size_bytes for artifact in entry.job.artifacts)
    return min(results + (entry.request_size_bytes if entry.job.dead_letter else 0), 2**62)


def ended_s(entry: JournalEntry) -> float | None:
    """When the job ended, in Unix seconds; None while it isn't over."""
    end = entry.job.end_time
    return end.seconds + end.nanos * 1e-9 if entry.job.HasField("end_time") else None


def _check_format(db: sqlite3.Connection, folder: Path) -> int:
    if db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'meta'").fetchone() == (0,):
        raise InvalidRequest("state", str(folder), f"a folder whose {JOURNAL_FILE} was made by a controller")
    found = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    if found not in ((2,), (FORMAT_VERSION,)):
        shown = found[0] if found else "none"
        raise InvalidRequest("state", str(folder), f"a journal of format 2 or {FORMAT_VERSION}; this has {shown}")
    return int(found[0])


def is_suspect(folder: Path) -> bool:
    """Whether it shall."""
    return (folder / SUSPECT).exists()


def check_structure(db: sqlite3.Connection, folder: Path) -> None:
    """SQLite looks at its own structure. Requests are read when they are needed; where one could not be, this looks at
    all of the file. Raises InvalidRequest."""
    for table in ("",) if is_suspect(folder) else ("meta", "workers", "jobs"):
        (answer,) = db.execute(f"PRAGMA quick_check({table or 1})").fetchone()
        if answer != "ok":
            raise InvalidRequest("state", str(folder), f"{UNDAMAGED} ({answer})")
    (folder / SUSPECT).unlink(missing_ok=True)


def check_entries(db: sqlite3.Connection | Database, field: str, name: str) -> None:
    """Raise InvalidRequest unless each job's entry can be read. `field` and `name` say where the journal is."""
    last: int | None = 0
    while last is not None:
        last = check_page(db, field, name, last)


def check_page(db: sqlite3.Connection | Database, field: str, name: str, last: int) -> int | None:
    """As `check_entries`, of a page of entries behind sequence `last`; the last one's, None where there are no more."""
    sql = "SELECT sequence, job_id, entry FROM jobs WHERE sequence > ? ORDER BY sequence LIMIT ?"
    rows = db.execute(sql, (last, PAGE_ENTRIES)).fetchall()
    for _, job_id, entry in rows:
        try:
            JournalEntry.FromString(entry)
        except DecodeError as error:
            raise InvalidRequest(field, name, f"{UNDAMAGED} (job {job_id!r} can't be read: {error})") from error
    return int(rows[-1][0]) if rows else None


def _migrate(db: sqlite3.Connection) -> None:
    """From format 2, where each job's row held its request: in one transaction, a job at a time."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("ALTER TABLE jobs RENAME TO old_jobs")
    for (index,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL").fetchall():
        db.execute(f"DROP INDEX {index}")
    for statement in _TABLES.split(";"):
        db.execute(statement)
    rows = db.execute(
        "SELECT sequence, job_id, client, request_id, retry_of, state, dead, entry, request FROM old_jobs"
    )
    for *row, data, body in rows:
        entry = JournalEntry.FromString(data)
        entry.request_size_bytes = len(body)
        with contextlib.suppress(DecodeError):  # kept as it is: the job fails with a sentence when it is to begin
            entry.request_sha256 = digest_of(GenerationRequest.FromString(body))
        end_s = ended_s(entry)
        values = (*row, end_s, 0 if end_s is None else kept_bytes(entry), entry.SerializeToString())
        db.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(values))})", values)
        if end_s is None or entry.job.dead_letter:
            db.execute("INSERT INTO requests VALUES (?, ?)", (entry.job.job_id, body))
    db.execute("DROP TABLE old_jobs")
    db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT_VERSION,))
    db.execute("COMMIT")
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("VACUUM")
    except sqlite3.Error as error:  # it needs as much space again; the file then only doesn't shrink
        log.warning("the journal's file keeps its size: %s", error)
