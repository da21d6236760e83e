"""One PostgreSQL for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.standby.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as started:
        yield started
