"""A job of full size, without weights: what crosses is what the published shapes say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.planning import published
from triptych.roles import ROLE_NAMES
from triptych.stages.plan import LONG_PROMPT, STEPS, dry_runs
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client.cli import main

BFLOAT16 = dict.fromkeys(ROLE_NAMES, torch.bfloat16)
PROMPT_EMBEDS_BYTES = 512 * 4096 * 2
LATENTS_BYTES = 16 * 21 * 60 * 104 * 4
GENERATORS_BYTES_MAX = 20_000
"""States of random generators, which cross, too: 5,056 bytes each."""


def test_rooms_of_wan_hold_two_prompts_and_then_the_latents(tmp_path: Path) -> None:
    whole = Whole.open(str(published.write(tmp_path, "Wan2.1-T2V-14B")), needs_weights=False)
    request = GenerationRequest(prompt=LONG_PROMPT, height=480, width=832, num_frames=81, num_inference_steps=STEPS)
    runs, note = dry_runs(whole, lambda: request, BFLOAT16)
    assert note == ""
    assert 0 <= runs["encoder"].room_bytes - 2 * PROMPT_EMBEDS_BYTES <= GENERATORS_BYTES_MAX
    assert 0 <= runs["transformer"].room_bytes - LATENTS_BYTES <= GENERATORS_BYTES_MAX
    # At least two copies of 32,760 tokens of 5,120 channels, and far from attention's scores, which are no tensor.
    tokens_bytes = 32_760 * 5_120 * 2
    assert 2 * tokens_bytes < runs["transformer"].activation_bytes < 20 * tokens_bytes


def test_what_can_not_run_without_weights_says_so_and_keeps_the_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published.write(tmp_path, "Qwen-Image-Edit")
    assert main(["plan", "--model", str(folder), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["note"].startswith("no activations and rooms: ")
    assert [role["activation_bytes"] for role in plan["roles"]] == [None] * 3
    assert plan["roles"][1]["weight_bytes"] > 40e9
