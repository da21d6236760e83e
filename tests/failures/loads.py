"""Fleets of fake stages, which start fast and take a given time: for tests of many jobs, restarts and full disks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.fleet.processes import Fleet
from triptych.stages.fake import expected_outputs
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, GenerationRequest, Job
from triptych_client import Client
from triptych_client.request import build_request

PROMPT = "a big red circle"
SIZES: dict[str, Any] = {"height": 16, "width": 16, "output_format": "npy"}


def fake_fleet(folder: Path, seconds: float, **settings: Any) -> Fleet:
    """A fleet whose transformers take so long for a job."""
    flags = ("--fake-stage-seconds", str(seconds), "--mover", "local", "--rings", "rpc")
    return Fleet(folder, "", worker_flags=(*flags, *settings.pop("worker_flags", ())), **settings)


def request(seed: int, **fields: Any) -> GenerationRequest:
    """A small request."""
    return build_request(PROMPT, seed=seed, **{**SIZES, **fields})


def check(client: Client, job: Job, seed: int, folder: Path, **fields: Any) -> None:
    """The job succeeded, and gave the bits that it must."""
    assert job.state == JOB_STATE_SUCCEEDED, job.error
    expected = expected_outputs(request(seed, **fields))["images"]
    found = np.load(client.download_result(job.job_id, folder / f"{job.job_id}.npy"))
    assert np.array_equal(found, expected[0])  # type: ignore[index]


def wait_over(client: Client, job_ids: list[str], timeout_s: float) -> dict[str, Job]:
    """All of the jobs, once they are over."""
    end_s = time.monotonic() + timeout_s
    found = {}
    for job_id in job_ids:
        for update in client.watch_job(job_id, timeout_s=max(1.0, end_s - time.monotonic())):
            found[job_id] = update.job
    return found
