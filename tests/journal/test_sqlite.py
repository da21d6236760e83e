"""The journal in SQLite, as every journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.controller.journal_sqlite import SqliteStore
from tests.journal.conformance import JournalConformance


class TestSqlite(JournalConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SqliteStore:
        return SqliteStore(tmp_path / "state")
