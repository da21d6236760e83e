"""A job that a second transformer does over has the bits of one that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.e2e import reference
from tests.e2e.conftest import result
from tests.e2e.test_parity import WAN, fields
from tests.fleet.held import name_of
from tests.fleet.processes import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DENOISING


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
        fleet.kill(name_of(fleet, client, job.transformer_rank))
        redelivered = result(client, long.job_id, tmp_path)
        ended = client.get_job(long.job_id)
        assert len(ended.attempts) == 1
        assert ended.transformer_rank != job.transformer_rank
    assert np.array_equal(redelivered, reference.fused(folder, **{**WAN, "seed": 1, "num_inference_steps": 150}))
