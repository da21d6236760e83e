"""The journal in SQLite, as every journal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.controller import journal_file
from services.controller.journal_sqlite import SqliteStore
from tests.journal.conformance import JournalConformance
from tests.journal.leases import LEASE_S, WAIT_S, LeaseConformance, OpenStore, controllers


class TestSqlite(JournalConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SqliteStore:
        return SqliteStore(tmp_path / "state")


class TestSharedSqlite(LeaseConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda lease_s: SqliteStore(tmp_path / "state", is_shared=lease_s > 0)

    async def test_a_takeover_looks_at_a_file_in_which_the_one_before_found_damage(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        async with controllers(open_store(LEASE_S), 2) as [(_, lease), (_, other)]:
            await lease.wait()
            waiting = asyncio.create_task(other.wait())
            journal_file.suspect(tmp_path / "state")
            assert await asyncio.wait_for(waiting, WAIT_S) == 2
            assert not journal_file.is_suspect(tmp_path / "state"), "it was looked at, and is whole"
