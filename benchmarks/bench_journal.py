"""Jobs that the journal accepts in a second, with 1, 16 and 256 clients at a time, in each of its databases.

A job is accepted when it is on disk. Clients that come together share a commit. PostgreSQL is a real one on this
machine, reached through its socket, and its data lie on the same disk as SQLite's.

    python -m benchmarks.bench_journal
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.controller.journal import Journal
from services.controller.journal_database import Store
from services.controller.journal_postgres import PostgresStore
from services.controller.journal_sqlite import SqliteStore
from tests.standby.postgres import Postgres
from triptych.v1.job_pb2 import GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry

CLIENTS = (1, 16, 256)
RUN_S = 3.0
"""For each cell."""


async def rate(store: Store, clients: int) -> float:
    """Jobs a second."""
    count = 0
    async with Journal(store) as journal:
        await journal.next_epoch()
        end_s = time.perf_counter() + RUN_S

        async def client(name: int) -> None:
            nonlocal count
            number = 0
            while time.perf_counter() < end_s:
                job_id = f"{clients}-{name}-{number}"
                entry = JournalEntry(job=Job(job_id=job_id, request_id=job_id))
                await journal.add(entry, GenerationRequest(prompt="a big red circle moving right"))
                number += 1
                count += 1

        await asyncio.gather(*(client(name) for name in range(clients)))
    return count / RUN_S


def main() -> None:
    """Measure and print."""
    shown = Table(title="jobs accepted a second, by clients at a time", title_justify="left")
    for column in ("journal", *map(str, CLIENTS)):
        shown.add_column(column)
    with Postgres() as postgres, tempfile.TemporaryDirectory(dir=postgres.folder.parent) as folder:
        stores: dict[str, Store] = {
            "SQLite": SqliteStore(Path(folder, "alone")),
            "SQLite, shared": SqliteStore(Path(folder, "shared"), is_shared=True),
            "PostgreSQL": PostgresStore(postgres.url(postgres.new_schema())),
        }
        for name, store in stores.items():
            shown.add_row(name, *(f"{asyncio.run(rate(store, clients)):,.0f}" for clients in CLIENTS))
    Console().print(shown)


if __name__ == "__main__":
    main()
