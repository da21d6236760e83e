"""Models and fleets of this suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import model_folder  # noqa: F401 — a fixture
from tests.engines.fleets import EngineFleet
from tests.families.conftest import _one_thread, family_folder  # noqa: F401 — fixtures


@pytest.fixture(scope="session")
def wan_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder) -> Iterator[EngineFleet]:  # noqa: F811
    """A tiny Wan, for tests that leave it whole."""
    with EngineFleet(tmp_path_factory.mktemp("fleet"), model_folder("wan_t2v")) as fleet:
        yield fleet
