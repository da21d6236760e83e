"""Where the settings put the journal."""

from __future__ import annotations

from pathlib import Path

from triptych.config import ControllerConfig

from .journal_database import Store
from .journal_postgres import PostgresStore
from .journal_sqlite import SqliteStore


def store_of(config: ControllerConfig) -> Store:
    """The store of a controller's journal."""
    if config.journal:
        return PostgresStore(config.journal, config.lease_s)
    return SqliteStore(Path(config.state), is_shared=config.lease_s > 0)
