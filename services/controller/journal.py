"""The job journal: a database on a thread of its own (`journal_thread.py`). A call ends when it is on disk.

All share the thread, the lease's renewals too. What reads many entries does so in pages, each a call of its own: nobody
waits longer than a page takes, here or, where they share the database, at another controller.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from triptych.errors import JournalDamaged, JournalFull, TakenOver
from triptych.v1.job_pb2 import GenerationRequest, JobState
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription

from . import journal_meta
from .journal_database import PAGE_ENTRIES, Database, Store
from .journal_file import digest_of, ended_s, kept_bytes
from .journal_sqlite import SqliteStore
from .journal_thread import JournalThread

Result = TypeVar("Result")

PAGE_BYTES_MAX = 2**20
"""Of the entries in a page: one with a hundred attempts has some 30 KiB. It is copied to the client in some 10 ms."""


class Journal:
    """The controller's only durable state. Use as an async context manager."""

    def __init__(self, store: Path | Store) -> None:
        """A folder stands for SQLite in it, for one controller."""
        self.full_count = 0
        """How often it was too full for a write. Metrics read it from another thread."""
        self.full_s = float("-inf")
        """When it was last too full for a write, on the event loop's clock."""
        self.ended: asyncio.Future[JournalDamaged | TakenOver] = asyncio.get_running_loop().create_future()
        """Done when nothing can be read or written any more: the controller ends."""
        self._thread = JournalThread(SqliteStore(store) if isinstance(store, Path) else store)

    async def __aenter__(self) -> Journal:
        """Open it, making it where needed. Raises InvalidRequest when it can't be used or is in use."""
        await self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._thread.close()

    # -- meta -------------------------------------------------------------------------------------------------

    async def next_epoch(self) -> int:
        """Count up and return the controller's epoch: from now on nobody of an older one writes."""
        self._thread.epoch = await self.run(journal_meta.next_epoch)
        return self._thread.epoch

    async def standing(self) -> journal_meta.Standing:
        """Who may write at this moment."""
        return await self.run(journal_meta.standing)

    async def take_over(self, seen: journal_meta.Standing, lease: bytes) -> int | None:
        """As `next_epoch`, and hold the lease; None where somebody else has changed what was `seen`. Raises
        InvalidRequest for a journal in which the one before found damage."""
        epoch = await self.run(lambda db: journal_meta.take_over(db, seen, lease))
        self._thread.epoch = epoch if epoch is not None else self._thread.epoch
        return epoch

    async def rank_of(self, instance_id: str) -> int:
        """The rank of a worker's process, or one never given before. Raises WrongState when there is none left."""
        return await self.run(lambda db: journal_meta.rank_of(db, instance_id))

    async def known_rank(self, instance_id: str) -> int:
        """The rank of a worker's process; 0 for one that isn't known, or not any more."""
        rows = await self._rows("SELECT rank FROM workers WHERE instance_id = ?", instance_id)
        return int(rows[0][0]) if rows else 0

    async def forget_worker(self, rank: int) -> None:
        """The process with this rank was evicted or left: if it comes back it gets a new rank."""
        await self.run(lambda db: db.execute("DELETE FROM workers WHERE rank = ?", (rank,)).rowcount)

    async def ranks(self) -> list[int]:
        """Ranks of the processes that were neither evicted nor have left."""
        return [int(rank) for (rank,) in await self._rows("SELECT rank FROM workers ORDER BY rank")]

    async def get_meta(self, key: str) -> bytes:
        """A stored value, empty when there is none."""
        return await self.run(lambda db: journal_meta.get(db, key))

    async def set_meta(self, key: str, value: bytes) -> None:
        await self.run(lambda db: journal_meta.put(db, key, value))

    # -- jobs -------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Look at every entry, while other controllers go on. Raises InvalidRequest for one that can't be read."""
        await self._in_pages(lambda last, db: db.check_entries(last))

    async def name_models(self) -> None:
        """Once for each journal: jobs that name no model are of the one that it served so far."""
        if await self.get_meta("models_named"):
            return
        model = ModelDescription.FromString(await self.get_meta("model"))
        await self._in_pages(functools.partial(_name_page, model))
        await self.set_meta("models_named", b"1")

    async def add(self, entry: JournalEntry, request: GenerationRequest) -> JournalEntry | None:
        """Accept a job. Returns the entry that has its client's `request_id`, or its `retry_of`, already; else None."""

        def insert(db: Database) -> JournalEntry | None:  # large requests take time: not the event loop's
            job = entry.job
            body = request.SerializeToString(deterministic=True)
            entry.request_sha256 = digest_of(request)
            entry.request_size_bytes = len(body)
            row = (job.job_id, job.client, job.request_id, job.retry_of or None, job.state, job.dead_letter)
            values = (*row, ended_s(entry), kept_bytes(entry), entry.SerializeToString())
            columns = "job_id, client, request_id, retry_of, state, dead, ended_s, kept_bytes, entry"
            sql = f"INSERT INTO jobs ({columns}) VALUES ({marks(values)}) ON CONFLICT DO NOTHING"
            if db.execute(sql, values).rowcount == 0:
                sql = "SELECT entry FROM jobs WHERE (client, request_id) = (?, ?) OR retry_of = ?"
                return _entry(db.execute(sql, row[1:4]).fetchone())
            db.execute("INSERT INTO requests VALUES (?, ?)", (job.job_id, body))
            return None

        return await self.run(insert)

    async def save(self, entry: JournalEntry) -> None:
        """Store a job's new state. A job that is over loses its request, unless it is a dead letter."""
        job = entry.job
        end_s = ended_s(entry)
        is_over = end_s is not None
        size_bytes = kept_bytes(entry) if is_over else 0
        row = (job.state, job.dead_letter, end_s, size_bytes, entry.SerializeToString(), job.job_id)

        def update(db: Database) -> None:
            sql = "UPDATE jobs SET state = ?, dead = ?, ended_s = ?, kept_bytes = ?, entry = ? WHERE job_id = ?"
            db.execute(sql, row)
            if is_over and not job.dead_letter:
                db.execute("DELETE FROM requests WHERE job_id = ?", (job.job_id,))

        await self.run(update)

    async def get(self, job_id: str) -> JournalEntry | None:
        return await self._entry("job_id = ?", job_id)

    async def find(self, client: str, request_id: str) -> JournalEntry | None:
        return await self._entry("(client, request_id) = (?, ?)", client, request_id)

    async def retry_of(self, job_id: str) -> JournalEntry | None:
        """The entry of the job that tries a dead letter again, or None."""
        return await self._entry("retry_of = ?", job_id)

    async def get_request(self, job_id: str) -> GenerationRequest | None:
        """The client's request; None when there is no such job, it is over, or its request is damaged."""

        def read(db: Database) -> GenerationRequest | None:
            row = db.execute("SELECT request FROM requests WHERE job_id = ?", (job_id,)).fetchone()
            try:
                return GenerationRequest.FromString(row[0]) if row else None
            except DecodeError:
                return None

        return await self.run(read)

    async def unfinished(self, over: Sequence[JobState.ValueType]) -> list[JournalEntry]:
        """Every entry whose state is not in `over`, oldest first."""
        condition = f"WHERE state NOT IN ({marks(over)})" if over else ""
        # Of these an index tells, be there ever so many that are over.
        sequences = sorted(row[0] for row in await self._rows(f"SELECT sequence FROM jobs {condition}", *over))
        found: list[JournalEntry] = []
        for start in range(0, len(sequences), PAGE_ENTRIES):
            found += await self.run(functools.partial(_entries, sequences[start : start + PAGE_ENTRIES]))
        return found

    async def page(
        self,
        states: Sequence[JobState.ValueType],
        before: int,
        limit: int,
        *,
        client: str | None = None,
        dead_only: bool = False,
        job_id_prefix: str = "",
    ) -> tuple[list[tuple[int, JournalEntry]], bool]:
        """Up to `limit` (sequence, entry) pairs below sequence `before`, newest first, and whether there may be more.

        Any state and any id where none is given; anybody's unless a `client` is. Large entries make it fewer:
        `PAGE_BYTES_MAX`.
        """
        # Beginnings of ids go by the ids' index, which has few such: sums keep the others from being used.
        number, text = (" + 0", " || ''") if job_id_prefix else ("", "")
        conditions: dict[str, Sequence[object]] = {f"sequence{number} < ?": [before]}
        if states:
            conditions[f"state{number} IN ({marks(states)})"] = states
        if client is not None:
            conditions[f"client{text} = ?"] = [client]
        if job_id_prefix:
            conditions["job_id >= ? AND job_id < ?"] = [job_id_prefix, job_id_prefix + chr(sys.maxunicode)]
        if dead_only:
            conditions["dead"] = []
        where = " AND ".join(conditions)
        sql = f"SELECT sequence, entry FROM jobs WHERE {where} ORDER BY sequence{number} DESC LIMIT ?"
        values = [*itertools.chain.from_iterable(conditions.values()), limit]

        def read(db: Database) -> tuple[list[tuple[int, JournalEntry]], bool]:
            found = []
            size_bytes = 0
            for row in db.execute(sql, values):  # parsed here: the event loop has others to serve
                found.append((int(row[0]), _entry(row[1:])))
                size_bytes += len(row[1])
                if size_bytes >= PAGE_BYTES_MAX:
                    return found, True
            return found, len(found) == limit

        return await self.run(read)

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Forget jobs, and with them their request ids."""

        def remove(db: Database) -> None:
            for table in ("requests", "jobs"):
                db.execute(f"DELETE FROM {table} WHERE job_id IN ({marks(job_ids)})", tuple(job_ids))

        if job_ids:
            await self.run(remove)

    async def counts(self, client: str | None = None) -> dict[int, int]:
        """Number of jobs by state; of all clients where none is given."""
        if client is None:
            return dict(await self._rows("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        return dict(await self._rows("SELECT state, COUNT(*) FROM jobs WHERE client = ? GROUP BY state", client))

    async def run(self, work: Callable[[Database], Result]) -> Result:
        """Do `work` in a transaction of the journal's thread. Raises JournalFull, JournalDamaged, TakenOver."""
        try:
            return await self._thread.call(work)
        except JournalFull:
            self.full_count += 1
            self.full_s = asyncio.get_running_loop().time()
            raise
        except (JournalDamaged, TakenOver) as error:
            if not self.ended.done():
                self.ended.set_result(error)
            raise

    async def _in_pages(self, page: Callable[[int, Database], int | None]) -> None:
        """Run `page` with the sequence of the last entry that it saw, until it says None. Half of the time is others':
        who waits for SQLite's lock looks only now and then whether it is free."""
        clock = asyncio.get_running_loop().time
        last: int | None = 0
        while last is not None:
            start_s = clock()
            last = await self.run(functools.partial(page, last))
            await asyncio.sleep(clock() - start_s)

    async def _rows(self, sql: str, *values: object) -> list[Any]:
        return await self.run(lambda db: db.execute(sql, values).fetchall())

    async def _entry(self, condition: str, *values: str) -> JournalEntry | None:
        rows = await self._rows(f"SELECT entry FROM jobs WHERE {condition}", *values)
        return _entry(rows[0]) if rows else None


def _name_page(model: ModelDescription, last: int, db: Database) -> int | None:
    """Name the model in a page of entries behind sequence `last`; the last one's, None where there are no more."""
    sql = "SELECT sequence, entry FROM jobs WHERE sequence > ? ORDER BY sequence LIMIT ?"
    rows = db.execute(sql, (last, PAGE_ENTRIES)).fetchall()
    for sequence, data in rows:
        entry = JournalEntry.FromString(data)
        if not entry.job.model_digest:
            entry.job.model = model.model
            entry.job.model_digest = model.config_digest
            db.execute("UPDATE jobs SET entry = ? WHERE sequence = ?", (entry.SerializeToString(), sequence))
    return int(rows[-1][0]) if rows else None


def _entries(sequences: Sequence[int], db: Database) -> list[JournalEntry]:
    sql = f"SELECT entry FROM jobs WHERE sequence IN ({marks(sequences)}) ORDER BY sequence"
    return [_entry(row) for row in db.execute(sql, sequences).fetchall()]


def _entry(row: Sequence[bytes]) -> JournalEntry:
    return JournalEntry.FromString(row[0])


def marks(values: Sequence[object]) -> str:
    """Places for so many values in a statement; one at least."""
    return ", ".join("?" * len(values))
