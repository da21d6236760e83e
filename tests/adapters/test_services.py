"""Adapters through four real processes: the distilled case to the bit, jobs in between, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.adapters import loras
from tests.e2e.conftest import ended
from tests.fleet.processes import Fleet
from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import JOB_STATE_FAILED, Job
from triptych_client import Client
from triptych_client.cli import main

SIZE = {"height": 32, "width": 32}
VIDEO = {**SIZE, "num_frames": 5}


def generate(client: Client, folder: Path, **fields: Any) -> tuple[Any, Job]:
    """A distilled job's result, and its record."""
    made = client.generate(
        loras.PROMPT, folder / "made.npy", output_format="npy", seed=loras.SEED, **{**loras.DISTILLED, **fields}
    )
    return np.load(made.paths[0]), made.job


def test_distilled_wan_in_four_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two transformers have one adapter in common, and different files under the name of another."""
    folder = models.wan_t2v(tmp_path / "model")
    pipeline = loras.whole(folder)
    registries = [tmp_path / "one", tmp_path / "other"]
    for number, registry in enumerate(registries):
        fast = loras.save(registry / "fast.safetensors", loras.tensors(pipeline, "transformer"))
        loras.save(registry / "style.safetensors", loras.tensors(pipeline, "transformer", rank=4, seed=1))
        loras.save(registry / "odd.safetensors", loras.tensors(pipeline, "transformer", seed=2 + number))
    steps = {"num_inference_steps": loras.DISTILLED["num_inference_steps"], "guidance_scale": 1.0}
    fleet = Fleet(
        tmp_path / "fleet",
        folder,
        counts={"transformer": 2},
        worker_flags=("--threads", "1"),
        flags_by_name={
            name: ("--adapters", str(registries[name == "transformer-1"]))
            for name in ("encoder-0", "transformer-0", "transformer-1", "decoder-0")
        },
    )
    with fleet, fleet.client() as client:
        described = {one.name: one for one in client.describe_model().adapters}
        assert list(described) == ["fast", "style"]
        expected = loras.classic(folder, [(fast, 0.75)], **VIDEO, **steps)
        ranks = set()
        for rank in [w.rank for w in client.get_fleet().workers if w.info.role == 2]:
            ours, job = generate(client, tmp_path, adapters={"fast": 0.75}, transformer_rank=rank, **VIDEO)
            assert np.array_equal(ours, expected)
            ranks.add(job.transformer_rank)
            plain, _job = generate(client, tmp_path, transformer_rank=rank, **VIDEO)
            assert np.array_equal(plain, loras.classic(folder, [], **VIDEO, **steps))
        assert len(ranks) == 2
        both, _job = generate(client, tmp_path, adapters={"fast": 0.75, "style": 0.5}, **VIDEO)
        path = registries[0] / "style.safetensors"
        assert np.array_equal(both, loras.classic(folder, [(fast, 0.75), (path, 0.5)], **VIDEO, **steps))

        refusals = [
            ({"fsat": 1.0}, r"adapters\[0\].name is 'fsat'; accepted: fast \(close to it\)"),
            ({"odd": 1.0}, "is 'odd'; accepted: fast, style"),
            ({"fast": float("nan")}, "weight is nan"),
            ({"fast": 1000.0}, "weight is 1000.0; accepted: -100 to 100"),
            (
                {"fast": {"vae": 1.0}},
                "component_weights is 'vae'; accepted: components that 'fast' touches: transformer",
            ),
        ]
        for adapters, sentence in refusals:
            with pytest.raises(InvalidRequest, match=sentence):
                client.create_job(loras.PROMPT, adapters=adapters, **VIDEO)

        assert main(["adapters", "--endpoint", fleet.endpoint]) == 0
        assert capfd.readouterr().out.splitlines()[0].split("\t")[:2] == ["fast", "transformer"]
        assert main(["adapters", "--json", "--endpoint", fleet.endpoint]) == 0
        assert [one["name"] for one in json.loads(capfd.readouterr().out)] == ["fast", "style"]
        asked = ["--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "4"]
        flags = [*asked, "--guidance-scale", "1", "--seed", str(loras.SEED), "--adapter", "fast=0.75"]
        out = tmp_path / "cli.npy"
        assert main(["generate", loras.PROMPT, "-o", str(out), "--endpoint", fleet.endpoint, *flags]) == 0
        assert np.array_equal(np.load(out), expected)


def test_qwen_image_distilled_in_four_processes(tmp_path: Path) -> None:
    """And a job whose adapter's files have changed since the start fails in a sentence; the next one is done."""
    folder = models.qwen_image(tmp_path / "model")
    pipeline = loras.whole(folder)
    registry = tmp_path / "adapters"
    fast = loras.save(registry / "fast.safetensors", loras.tensors(pipeline, "transformer"))
    gone = loras.save(registry / "gone.safetensors", loras.tensors(pipeline, "transformer", seed=1))
    flags = ("--threads", "1", "--adapters", str(registry), "--adapter-bytes-max", "0")
    with Fleet(tmp_path / "fleet", folder, worker_flags=flags) as fleet, fleet.client() as client:
        ours, _job = generate(client, tmp_path, adapters={"fast": 1.0}, **SIZE)
        fields = {**SIZE, "num_inference_steps": loras.DISTILLED["num_inference_steps"], "true_cfg_scale": 1.0}
        assert np.array_equal(ours, loras.classic(folder, [(fast, 1.0)], **fields))
        gone.write_bytes(gone.read_bytes() + b" ")
        before = {worker.info.process_id for worker in client.get_fleet().workers}
        job = ended(client, client.create_job(loras.PROMPT, adapters={"gone": 1.0}, **SIZE).job_id)
        assert job.state == JOB_STATE_FAILED
        assert "the files of the adapter 'gone' were changed; this worker must start again" in job.error
        assert {worker.info.process_id for worker in client.get_fleet().workers} == before
        again, _job = generate(client, tmp_path, adapters={"fast": 1.0}, **SIZE)
        assert np.array_equal(again, ours)
