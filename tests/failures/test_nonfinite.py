"""Weights that make NaN, in a fleet: the second attempt ends the job, in one sentence, where that isn't allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.e2e.conftest import SMALL, result, worker_of
from tests.fleet.processes import Fleet
from tests.stages.test_finite import spoiled
from triptych.v1.job_pb2 import ATTEMPT_KIND_STAGE_ERROR, JOB_STATE_FAILED


def test_a_job_of_numbers_that_are_none_fails_unless_its_worker_allows_them(
    tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    model = spoiled(model_folder("wan_t2v"), tmp_path / "model", "vae", "decoder.conv_out.bias", float("nan"))
    flags = {"decoder-1": ("--nonfinite", "allow")}
    with (
        Fleet(tmp_path / "fleet", model, counts={"decoder": 2}, flags_by_name=flags) as fleet,
        fleet.client() as client,
    ):
        strict, lenient = (worker_of(fleet, name).rank for name in ("decoder-0", "decoder-1"))
        job_id = client.create_job("a", num_frames=3, decoder_rank=strict, **SMALL).job_id
        for update in client.watch_job(job_id, timeout_s=120):
            job = update.job
        assert job.state == JOB_STATE_FAILED
        assert [attempt.kind for attempt in job.attempts] == [ATTEMPT_KIND_STAGE_ERROR] * 2
        assert "the decoder made NaN in videos" in job.error
        allowed = client.create_job("a", num_frames=3, decoder_rank=lenient, output_format="npy", **SMALL)
        assert np.isnan(result(client, allowed.job_id, tmp_path)).any()
