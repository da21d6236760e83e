"""A job that a second transformer does over has the bits of one that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.e2e import reference
from tests.e2e.conftest import result
from tests.e2e.test_parity import WAN, fields
from tests.failures.test_survival import HELD_STEPS
from tests.fleet.held import HeldFleet, name_of, wait_state
from tests.fleet.processes import DEATH_TIMEOUT_S
from triptych.v1.job_pb2 import JOB_STATE_DENOISING


def test_two_transformers_share_the_work_and_a_redelivery_changes_no_bit(
    tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    folder = model_folder("wan_t2v")
    with (
        HeldFleet(tmp_path / "held", folder, counts={"transformer": 2}, worker_timeout_s=DEATH_TIMEOUT_S) as fleet,
        fleet.client() as client,
    ):
        with fleet.held("transformer-0", "transformer-1"):  # else the one that is quicker may do all of them
            jobs = [client.create_job("a big red circle", output_format="npy", **fields(seed)) for seed in range(6)]
            for name in ("transformer-0", "transformer-1"):
                fleet.wait_held(name)
        arrays = [result(client, job.job_id, tmp_path) for job in jobs]
        ranks = {client.get_job(job.job_id).transformer_rank for job in jobs}
        assert len(ranks) == 2
        assert np.array_equal(arrays[0], reference.fused(folder, **{**WAN, "seed": 0}))
        assert not np.array_equal(arrays[0], arrays[1])

        for name in ("transformer-0", "transformer-1"):
            fleet.hold(name, HELD_STEPS)
        long = client.create_job("a big red circle", output_format="npy", **fields(1, num_inference_steps=20))
        job = wait_state(client, long.job_id, JOB_STATE_DENOISING, HELD_STEPS)
        killed = name_of(fleet, client, job.transformer_rank)
        fleet.kill(killed)
        fleet.release(next(name for name in ("transformer-0", "transformer-1") if name != killed))
        redelivered = result(client, long.job_id, tmp_path)
        ended = client.get_job(long.job_id)
        assert len(ended.attempts) == 1
        assert ended.transformer_rank != job.transformer_rank
    assert np.array_equal(redelivered, reference.fused(folder, **{**WAN, "seed": 1, "num_inference_steps": 20}))
