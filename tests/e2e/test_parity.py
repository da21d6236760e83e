"""Parity, to the bit: services = `--fused` = diffusers' `ModularPipeline` = diffusers' classic pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import reference
from tests.e2e.conftest import generate, result
from tests.e2e.fleet import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DENOISING
from triptych_client import Client

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


def test_qwen_image_equals_every_reference(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """Its VAE halves three times, not four: a silent default of 8 or 16 would show."""
    folder = model_folder("qwen_image")
    with Fleet(tmp_path / "fleet", folder) as fleet, fleet.client() as client:
        ours = generate(client, tmp_path, **QWEN)
    assert np.array_equal(ours, reference.fused(folder, **QWEN))
    assert np.array_equal(ours, reference.modular(folder, "images", 2.5))
    assert np.array_equal(ours, reference.classic(folder, "QwenImagePipeline", true_cfg_scale=2.5))


@pytest.mark.parametrize("mover", ["local", "mooncake", "rpc"])
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


def test_two_transformers_share_the_work_and_a_redelivery_changes_no_bit(
    tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    folder = model_folder("wan_t2v")
    with Fleet(tmp_path / "fleet", folder, counts={"transformer": 2}) as fleet, fleet.client() as client:
        seeds = range(6)
        jobs = [client.create_job("a big red circle", output_format="npy", **fields(seed)) for seed in seeds]
        arrays = [result(client, job.job_id, tmp_path) for job in jobs]
        ranks = {client.get_job(job.job_id).transformer_rank for job in jobs}
        assert len(ranks) == 2
        assert np.array_equal(arrays[0], reference.fused(folder, **{**WAN, "seed": 0}))
        assert not np.array_equal(arrays[0], arrays[1])

        long = client.create_job("a big red circle", output_format="npy", **fields(1, num_inference_steps=150))
        wait_until(lambda: client.get_job(long.job_id).step > 3, 30, "the job is being denoised")
        job = client.get_job(long.job_id)
        assert job.state == JOB_STATE_DENOISING
        fleet.kill(holder_of(fleet, client, job.transformer_rank))
        redelivered = result(client, long.job_id, tmp_path)
        ended = client.get_job(long.job_id)
        assert len(ended.attempts) == 1
        assert ended.transformer_rank != job.transformer_rank
    assert np.array_equal(redelivered, reference.fused(folder, **{**WAN, "seed": 1, "num_inference_steps": 150}))


def fields(seed: int, **more: object) -> dict[str, object]:
    return {**WAN, "height": 32, "width": 64, "num_inference_steps": 3, "negative_prompt": "blur", "seed": seed, **more}


def holder_of(fleet: Fleet, client: Client, rank: int) -> str:
    """Name of the process that has a rank."""
    (pid,) = [worker.process_id for worker in client.get_fleet().workers if worker.rank == rank]
    (name,) = [name for name, process in fleet.processes.items() if process.pid == pid]
    return name


def fetches(address: str) -> dict[str, int]:
    """How many rooms a worker has fetched, by mover."""
    import grpc

    from triptych.v1.worker_service_pb2 import GetWorkerRequest
    from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub

    with grpc.insecure_channel(address) as channel:
        worker = WorkerServiceStub(channel).GetWorker(GetWorkerRequest(), timeout=10).worker
    return dict(worker.fetch_count_by_mover)
