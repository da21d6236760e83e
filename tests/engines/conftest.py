"""Models and fleets of this suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import model_folder  # noqa: F401 — a fixture
from tests.engines.fleets import EngineFleet
from tests.families.conftest import _one_thread, family_folder  # noqa: F401 — fixtures


@pytest.fixture(scope="session")
def wan_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder) -> Iterator[EngineFleet]:  # noqa: F811
    """A tiny Wan with two encoders, for tests that leave it whole."""
    folder, flags = tmp_path_factory.mktemp("fleet"), ("--batch-wait-ms-max", "300")
    model = model_folder("wan_t2v")
    with EngineFleet(folder, model, counts={"encoder": 2}, text_encoder_flags=flags) as fleet:
        yield fleet
