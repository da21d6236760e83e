"""Parity, to the bit: services = `--fused` = diffusers' `ModularPipeline` = diffusers' classic pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import reference
from tests.e2e.conftest import generate
from tests.fleet.processes import Fleet

WAN = {"num_frames": 5, "guidance_scale": 3.5}
QWEN = {"guidance_scale": 2.5}


def test_wan_equals_every_reference(wan_fleet: Fleet, tmp_path: Path) -> None:
    folder = wan_fleet.model
    with wan_fleet.client() as client:
        ours = generate(client, tmp_path, **WAN)
    assert ours.shape == (5, 32, 64, 3)
    assert np.array_equal(ours, reference.fused(folder, **WAN))
    assert np.array_equal(ours, reference.modular(folder, "videos", 3.5, num_frames=5))
    assert np.array_equal(ours, reference.classic(folder, "WanPipeline", num_frames=5, guidance_scale=3.5))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_wan_without_guidance_equals_the_classic_pipeline(scale: float, wan_fleet: Fleet, tmp_path: Path) -> None:
    """Of more families in `tests/families`; here every role must learn of it through its services."""
    fields = {"num_frames": 5, "guidance_scale": scale}
    with wan_fleet.client() as client:
        ours = generate(client, tmp_path, **fields)
    assert np.array_equal(ours, reference.fused(wan_fleet.model, **fields))
    assert np.array_equal(ours, reference.classic(wan_fleet.model, "WanPipeline", **fields))


def test_qwen_image_equals_every_reference(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """Its VAE halves three times, not four: a silent default of 8 or 16 would show."""
    folder = model_folder("qwen_image")
    with Fleet(tmp_path / "fleet", folder) as fleet, fleet.client() as client:
        ours = generate(client, tmp_path, **QWEN)
    assert np.array_equal(ours, reference.fused(folder, **QWEN))
    assert np.array_equal(ours, reference.modular(folder, "images", 2.5))
    assert np.array_equal(ours, reference.classic(folder, "QwenImagePipeline", true_cfg_scale=2.5))


@pytest.mark.parametrize("mover", ["local", pytest.param("mooncake", marks=pytest.mark.needs_mooncake), "rpc"])
def test_bits_do_not_depend_on_the_mover(
    mover: str, wan_fleet: Fleet, tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    with wan_fleet.client() as client:
        expected = generate(client, tmp_path, **WAN)
    with Fleet(tmp_path / "fleet", model_folder("wan_t2v"), worker_flags=("--mover", mover)) as fleet:
        with fleet.client() as client:
            assert np.array_equal(generate(client, tmp_path, **WAN), expected)
        for name in ("transformer-0", "decoder-0"):
            assert fetches(fleet.addresses[name]) == {mover: 1}


def fields(seed: int, **more: object) -> dict[str, object]:
    return {**WAN, "height": 32, "width": 64, "num_inference_steps": 3, "negative_prompt": "blur", "seed": seed, **more}


def fetches(address: str) -> dict[str, int]:
    """How many rooms a worker has fetched, by mover."""
    import grpc

    from triptych.v1.worker_service_pb2 import GetWorkerRequest
    from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub

    with grpc.insecure_channel(address) as channel:
        worker = WorkerServiceStub(channel).GetWorker(GetWorkerRequest(), timeout=10).worker
    return dict(worker.status.fetch_count_by_mover)
