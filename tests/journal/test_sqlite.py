"""The journal in SQLite, as every journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.controller.journal_sqlite import SqliteStore
from tests.journal.conformance import JournalConformance
from tests.journal.leases import LeaseConformance, OpenStore


class TestSqlite(JournalConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SqliteStore:
        return SqliteStore(tmp_path / "state")


class TestSharedSqlite(LeaseConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda lease_s: SqliteStore(tmp_path / "state", is_shared=lease_s > 0)
