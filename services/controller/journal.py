"""The job journal: SQLite in WAL mode, one thread, group commit.

A write is durable (fsynced) when its future is done. Writes that arrive while the disk is busy share the next
commit, so that a burst of jobs costs a few fsyncs, not one each. Reads run on the same thread, between commits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from services.controller import journal_file
from triptych.errors import InvalidRequest, JournalFull
from triptych.v1.job_pb2 import GenerationRequest, JobState
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription

Result = TypeVar("Result")

COMMIT_BATCH_MAX = 256
"""Writes that share a commit: bounds how long the first of them waits."""


class Journal:
    """The controller's only durable state. Use as an async context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.full_s = float("-inf")
        """When it was last too full for a write, on the event loop's clock."""
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    async def __aenter__(self) -> Journal:
        """Open the folder, making it where needed. Raises InvalidRequest when it can't be used or is in use."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds prompts
            self._lock = (self._folder / "lock").open("w")
        except OSError as error:
            raise InvalidRequest("state", str(self._folder), f"a folder that can be written ({error})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InvalidRequest("state", str(self._folder), "a folder that no other controller uses") from error
        self._thread.start()
        try:
            await asyncio.wrap_future(self._opened)
        except sqlite3.Error as error:
            self._lock.close()
            raise InvalidRequest("state", str(self._folder), f"a journal that SQLite can read ({error})") from error
        except InvalidRequest:
            self._lock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)
        self._lock.close()

    # -- meta -------------------------------------------------------------------------------------------------

    async def next_epoch(self) -> int:
        """Count up and return the controller's epoch."""
        return await self._call(lambda db: _increment(db, "epoch"))

    async def rank_of(self, instance_id: str) -> int:
        """The rank of a worker's process; a new one, never given before, when it isn't known."""

        def find(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT rank FROM workers WHERE instance_id = ?", (instance_id,)).fetchone()
            if row:
                return int(row[0])
            rank = _increment(db, "rank")
            db.execute("INSERT INTO workers VALUES (?, ?)", (instance_id, rank))
            return rank

        return await self._call(find)

    async def forget_worker(self, rank: int) -> None:
        """The process with this rank was declared dead or left: if it comes back it gets a new rank."""
        await self._call(lambda db: db.execute("DELETE FROM workers WHERE rank = ?", (rank,)) and None)

    async def ranks(self) -> list[int]:
        """Ranks of the processes that were neither declared dead nor have left."""
        rows = await self._call(lambda db: db.execute("SELECT rank FROM workers ORDER BY rank").fetchall())
        return [int(row[0]) for row in rows]

    async def get_meta(self, key: str) -> bytes:
        """A stored value, empty when there is none."""
        row = await self._call(lambda db: db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone())
        return bytes(row[0]) if row else b""

    async def set_meta(self, key: str, value: bytes) -> None:
        """Store a value."""
        await self._call(lambda db: db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value)) and None)

    async def name_models(self) -> int:
        """Once for each journal: jobs that name no model are of the one that it served so far. Returns how many."""

        def name(db: sqlite3.Connection) -> int:
            if db.execute("SELECT 1 FROM meta WHERE key = 'models_named'").fetchone():
                return 0
            row, count = db.execute("SELECT value FROM meta WHERE key = 'model'").fetchone(), 0
            model = ModelDescription.FromString(row[0]) if row else ModelDescription()
            for job_id, data in db.execute("SELECT job_id, entry FROM jobs").fetchall():
                entry = JournalEntry.FromString(data)
                if not entry.job.model_digest:
                    entry.job.model, entry.job.model_digest = model.model, model.config_digest
                    db.execute("UPDATE jobs SET entry = ? WHERE job_id = ?", (entry.SerializeToString(), job_id))
                    count += 1
            db.execute("INSERT INTO meta VALUES ('models_named', 1)")
            return count

        return await self._call(name)

    # -- jobs -------------------------------------------------------------------------------------------------

    async def add(self, entry: JournalEntry, request: GenerationRequest) -> JournalEntry | None:
        """Accept a job. Returns the entry that has its client's `request_id`, or its `retry_of`, already; else None."""
        job = entry.job
        row = (job.job_id, job.client, job.request_id, job.retry_of or None, job.state, job.dead_letter)
        body = (entry.SerializeToString(), request.SerializeToString(deterministic=True))

        def insert(db: sqlite3.Connection) -> JournalEntry | None:
            columns = "job_id, client, request_id, retry_of, state, dead, entry, request"
            try:
                db.execute(f"INSERT INTO jobs ({columns}) VALUES ({_marks([*row, *body])})", (*row, *body))
            except sqlite3.IntegrityError:
                sql = "SELECT entry FROM jobs WHERE (client, request_id) = (?, ?) OR retry_of = ?"
                return _entry(db.execute(sql, row[1:4]).fetchone())
            return None

        return await self._call(insert)

    async def save(self, entry: JournalEntry) -> None:
        """Store a job's new state."""
        row = (entry.job.state, entry.job.dead_letter, entry.SerializeToString(), entry.job.job_id)
        sql = "UPDATE jobs SET state = ?, dead = ?, entry = ? WHERE job_id = ?"
        await self._call(lambda db: db.execute(sql, row) and None)

    async def get(self, job_id: str) -> JournalEntry | None:
        """A job's entry, or None."""
        sql = "SELECT entry FROM jobs WHERE job_id = ?"
        row = await self._call(lambda db: db.execute(sql, (job_id,)).fetchone())
        return _entry(row) if row else None

    async def find(self, client: str, request_id: str) -> JournalEntry | None:
        """The entry of a client's request, or None."""
        sql = "SELECT entry FROM jobs WHERE (client, request_id) = (?, ?)"
        row = await self._call(lambda db: db.execute(sql, (client, request_id)).fetchone())
        return _entry(row) if row else None

    async def retry_of(self, job_id: str) -> JournalEntry | None:
        """The entry of the job that tries a dead letter anew, or None."""
        sql = "SELECT entry FROM jobs WHERE retry_of = ?"
        row = await self._call(lambda db: db.execute(sql, (job_id,)).fetchone())
        return _entry(row) if row else None

    async def get_request(self, job_id: str) -> GenerationRequest | None:
        """What the client asked for, or None."""
        sql = "SELECT request FROM jobs WHERE job_id = ?"
        row = await self._call(lambda db: db.execute(sql, (job_id,)).fetchone())
        return GenerationRequest.FromString(row[0]) if row else None

    async def unfinished(self, over: Sequence[JobState.ValueType]) -> list[JournalEntry]:
        """Every entry whose state is not in `over`, oldest first."""
        sql = f"SELECT entry FROM jobs WHERE state NOT IN ({_marks(over)}) ORDER BY sequence"
        rows = await self._call(lambda db: db.execute(sql, tuple(over)).fetchall())
        return [_entry(row) for row in rows]

    async def page(
        self,
        states: Sequence[JobState.ValueType],
        before: int,
        limit: int,
        *,
        client: str | None = None,
        dead_only: bool = False,
    ) -> list[tuple[int, JournalEntry]]:
        """Up to `limit` (sequence, entry) pairs below sequence `before`, newest first.

        Any state when none is given; anybody's unless a `client` is.
        """
        conditions = ["sequence < ?"]
        if states:
            conditions.append(f"state IN ({_marks(states)})")
        if client is not None:
            conditions.append("client = ?")
        if dead_only:
            conditions.append("dead")
        sql = f"SELECT sequence, entry FROM jobs WHERE {' AND '.join(conditions)} ORDER BY sequence DESC LIMIT ?"
        values = (before, *states, *([] if client is None else [client]), limit)
        rows = await self._call(lambda db: db.execute(sql, values).fetchall())
        return [(int(row[0]), _entry(row[1:])) for row in rows]

    async def finished(
        self, over: Sequence[JobState.ValueType], after: int, limit: int
    ) -> list[tuple[int, JournalEntry]]:
        """Up to `limit` (sequence, entry) pairs beyond sequence `after` whose state is in `over`, oldest first."""
        condition = f"sequence > ? AND state IN ({_marks(over)})"
        sql = f"SELECT sequence, entry FROM jobs WHERE {condition} ORDER BY sequence LIMIT ?"
        rows = await self._call(lambda db: db.execute(sql, (after, *over, limit)).fetchall())
        return [(int(row[0]), _entry(row[1:])) for row in rows]

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Forget jobs, and with them their request ids."""
        sql = f"DELETE FROM jobs WHERE job_id IN ({_marks(job_ids)})"
        await self._call(lambda db: db.execute(sql, tuple(job_ids)) and None)

    async def counts(self, client: str | None = None) -> dict[int, int]:
        """Number of jobs by state; of all clients where none is given."""
        condition, values = ("", ()) if client is None else ("WHERE client = ?", (client,))
        sql = f"SELECT state, COUNT(*) FROM jobs {condition} GROUP BY state"
        return dict(await self._call(lambda db: db.execute(sql, values).fetchall()))

    # -- the thread -------------------------------------------------------------------------------------------

    async def _call(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._calls.put(_Call(work, future, loop))
        try:
            result: Result = await future
        except JournalFull:
            self.full_s = loop.time()
            raise
        return result

    def _run(self) -> None:
        try:
            db = journal_file.open_file(self._folder)
        except (InvalidRequest, sqlite3.Error) as error:
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
                _commit(db, [call for call in batch if call])


class _Call:
    """Work for the journal's thread, and where to deliver its result."""

    def __init__(
        self, work: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._work, self._future, self._loop = work, future, loop
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self, db: sqlite3.Connection) -> None:
        self._error = None
        try:
            self._result = self._work(db)
        except sqlite3.Error:
            raise  # the transaction may be gone, and with it what others did in it
        except Exception as error:  # noqa: BLE001  (delivered to the caller)
            self._error = error

    def deliver(self, error: BaseException | None = None) -> None:
        self._loop.call_soon_threadsafe(self._set, error or self._error)

    def _set(self, error: BaseException | None) -> None:
        if self._future.cancelled():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(self._result)


def _commit(db: sqlite3.Connection, calls: Sequence[_Call]) -> None:
    """Run the calls in one transaction; none is delivered before it is on disk.

    Where the disk can't take them together each is tried alone, so that reads, and what still fits, go on. What it
    can't take alone is JournalFull, and the journal stays as it was.
    """
    if not calls:
        return
    try:
        _transaction(db, calls)
    except sqlite3.Error as error:
        if len(calls) > 1:
            for call in calls:
                _commit(db, [call])
        else:
            calls[0].deliver(JournalFull(f"the journal can't be written now ({error}); try again later"))
        return
    for call in calls:
        call.deliver()


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


def _increment(db: sqlite3.Connection, key: str) -> int:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    value = int(row[0]) + 1 if row else 1
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    return value


def _entry(row: Sequence[bytes]) -> JournalEntry:
    return JournalEntry.FromString(row[0])


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
