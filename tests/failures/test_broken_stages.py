"""Errors of a real stage that aren't the job's: a process that is spoiled, and memory that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.e2e.conftest import ended, result
from tests.failures.held import HUGE_BYTES
from tests.fleet.held import WAIT_S, HeldFleet, create
from tests.fleet.processes import wait_until
from triptych.v1.job_pb2 import ATTEMPT_KIND_OUT_OF_MEMORY, ATTEMPT_KIND_WORKER_SICK, JOB_STATE_FAILED
from triptych_client import Client

TRANSFORMERS = ("transformer-0", "transformer-1")
EXIT_BROKEN = 1


def test_an_error_that_spoils_a_process_ends_it_and_not_the_job(
    fleet: HeldFleet, client: Client, tmp_path: Path
) -> None:
    """torch's own type of error, out of the middle of a pipeline."""
    steps = 7
    (fleet.holds / f"spoil-{steps}").touch()
    job_id = create(client, num_inference_steps=steps)
    array = result(client, job_id, tmp_path)
    job = client.get_job(job_id)
    (attempt,) = job.attempts
    assert (attempt.kind, attempt.reason) == (
        ATTEMPT_KIND_WORKER_SICK,
        "CUDA error: device-side assert triggered",
    )
    assert attempt.rank != job.transformer_rank

    def codes() -> list[int | None]:
        return [fleet.processes[name].poll() for name in TRANSFORMERS]

    wait_until(lambda: codes() != [None, None], WAIT_S, "the process that met it has ended")
    assert sorted(codes(), key=str) == [EXIT_BROKEN, None]
    assert np.array_equal(array, fleet.expected(num_inference_steps=steps))


def test_too_little_memory_is_tried_once_more_elsewhere_and_costs_no_worker(
    fleet: HeldFleet, client: Client, tmp_path: Path
) -> None:
    steps = 8
    starving = fleet.holds / f"starve-{steps}"
    starving.touch()
    try:
        job = ended(client, create(client, num_inference_steps=steps))
    finally:
        starving.unlink()
    assert job.state == JOB_STATE_FAILED
    said = r"out of memory on cpu: \S+ TiB more were asked for; .* were free"
    assert re.fullmatch("transformers ran out of memory in 2 attempts; the last: " + said, job.error), job.error
    for attempt in job.attempts:
        assert attempt.needed_bytes == HUGE_BYTES
        assert 0 < attempt.available_bytes < HUGE_BYTES
    assert [attempt.kind for attempt in job.attempts] == [ATTEMPT_KIND_OUT_OF_MEMORY] * 2
    assert len({attempt.rank for attempt in job.attempts}) == 2
    again = result(client, create(client, num_inference_steps=steps), tmp_path)
    assert np.array_equal(again, fleet.expected(num_inference_steps=steps))
    assert [fleet.processes[name].poll() for name in TRANSFORMERS] == [None, None]
