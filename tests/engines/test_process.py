"""A text-encoder process gives the bits of the pipeline in one process, and its encoder holds no such weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e import reference
from tests.e2e.conftest import SMALL, generate, result, worker_of
from tests.engines.fleets import EngineFleet
from tests.telemetry import pages
from tests.telemetry.tables import TELEMETRY, TEXT_ENCODER, quoted, table
from triptych_client.request import build_request

pytestmark = pytest.mark.timeout(600)
"""A fleet of six processes starts first."""
WAN = {"num_frames": 5, "guidance_scale": 3.5}


def test_the_bits_are_those_of_one_process(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    before = wan_fleet.answers("computed")
    with wan_fleet.client() as client:
        ours = generate(client, tmp_path, **WAN)
    assert np.array_equal(ours, reference.modular(wan_fleet.model, "videos", 3.5, num_frames=5))
    assert wan_fleet.answers("computed") == before + 2, "the prompt and the negative prompt"
    assert "text_encoder" not in dict(worker_of(wan_fleet, "encoder-0").info.component_bytes)


def test_equal_calls_run_no_model(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    """Once both encoders know what they read: an encoder's first calls ask for all, so they aren't equal to later."""
    with wan_fleet.client() as client:
        first = generate(client, tmp_path, **WAN)
        for _ in range(5):  # each encoder computes in two of them at most
            computed, kept = wan_fleet.answers("computed"), wan_fleet.answers("kept")
            assert np.array_equal(generate(client, tmp_path, **WAN), first)
            if wan_fleet.answers("computed") == computed:
                break
    assert (wan_fleet.answers("computed"), wan_fleet.answers("kept")) == (computed, kept + 2)


def test_jobs_of_several_encoders_keep_their_bits(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    """Their calls meet in the process, which waits for more of them, and may run as one."""
    fields = {**SMALL, **WAN, "output_format": "npy"}
    with wan_fleet.client() as client:
        prompts = [f"a {size} red circle" for size in ("big", "tiny", "flat", "round")]
        jobs = [client.submit(build_request(prompt, **fields)).job_id for prompt in prompts]
        made = [result(client, job_id, tmp_path) for job_id in jobs]
        for prompt, together in zip(prompts, made, strict=True):
            request = build_request(f"{prompt}", **fields)
            assert np.array_equal(result(client, client.submit(request).job_id, tmp_path), together)
    assert np.array_equal(made[0], reference.modular(wan_fleet.model, "videos", 3.5, num_frames=5))


def test_its_metrics_are_documented(wan_fleet: EngineFleet, tmp_path: Path) -> None:
    with wan_fleet.client() as client:
        generate(client, tmp_path, **WAN)
    rows = [row for row in table(TELEMETRY, "## Metrics") if row["process"] == TEXT_ENCODER]
    documented = {quoted(row["on the page"])[0]: set(quoted(row["labels"])) for row in rows}
    page = pages.labels(wan_fleet.page_port)
    assert {name: labels for name, labels in page.items() if "text_encoder" in name} == documented
