"""Encoders whose text encoders run under other settings don't mix with those that run them themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.fleets import EngineFleet
from tests.fleet.processes import STOP_TIMEOUT_S

pytestmark = pytest.mark.timeout(600)
"""It starts six processes."""


def test_the_controller_refuses_an_encoder_of_another_engine(tmp_path: Path, model_folder) -> None:
    """Batches that are always made may change last bits, so such a text encoder is another one."""
    flags = ("--batching", "always")
    with EngineFleet(tmp_path / "fleet", model_folder("wan_t2v"), text_encoder_flags=flags) as fleet:
        fleet.spawn("encoder-1")  # has no engine
        assert fleet.processes["encoder-1"].wait(STOP_TIMEOUT_S) == 2
        said = fleet.log("encoder-1")
        assert "text_encoder" in said, said
        with fleet.client() as client:
            assert [worker.info.process_id for worker in client.get_fleet().workers].count(fleet.pid("encoder-0")) == 1
            assert len(client.get_fleet().workers) == 3
