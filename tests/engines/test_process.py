"""A text-encoder process gives the bits of the pipeline in one process, and its encoder holds no such weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.e2e import reference
from tests.e2e.conftest import generate, worker_of
from tests.engines.fleets import EngineFleet

WAN = {"num_frames": 5, "guidance_scale": 3.5}


def test_the_bits_are_those_of_one_process(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    before = wan_fleet.answers("computed")
    with wan_fleet.client() as client:
        ours = generate(client, tmp_path, **WAN)
    assert np.array_equal(ours, reference.modular(wan_fleet.model, "videos", 3.5, num_frames=5))
    assert wan_fleet.answers("computed") == before + 2, "the prompt and the negative prompt"
    assert "text_encoder" not in dict(worker_of(wan_fleet, "encoder-0").info.component_bytes)


def test_equal_calls_run_no_model(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    with wan_fleet.client() as client:
        first = generate(client, tmp_path, **WAN)
        computed, kept = wan_fleet.answers("computed"), wan_fleet.answers("kept")
        assert np.array_equal(generate(client, tmp_path, **WAN), first)
    assert (wan_fleet.answers("computed"), wan_fleet.answers("kept")) == (computed, kept + 2)
