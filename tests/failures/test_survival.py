"""Death of any process: nothing accepted is lost, and no bit changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e import reference
from tests.e2e.conftest import SMALL, result, worker_of
from tests.fleet.held import HeldFleet, wait_state
from tests.fleet.processes import DEATH_TIMEOUT_S, wait_until
from triptych.transport.shared_memory import NAME_PREFIX, sweep
from triptych.v1.job_pb2 import JOB_STATE_DENOISING, JOB_STATE_ENCODED, Job
from triptych.v1.worker_pb2 import WORKER_STATE_DRAINING
from triptych_client import Client

FIELDS: dict[str, Any] = {**SMALL, "num_frames": 5, "guidance_scale": 3.5, "output_format": "npy"}
LONG = {**FIELDS, "num_inference_steps": 20}
HELD_STEPS = 5
"""Steps of a job that is met in the middle."""


def half_done(fleet: HeldFleet, client: Client) -> Job:
    """A job that the transformer has begun, and holds."""
    fleet.hold("transformer-0", HELD_STEPS)
    job_id = client.create_job("a big red circle", **LONG).job_id
    fleet.wait_held("transformer-0")
    return wait_state(client, job_id, JOB_STATE_DENOISING, HELD_STEPS)


@pytest.fixture
def fleet(tmp_path: Path, model_folder: Callable[[str], str]) -> Any:
    with HeldFleet(tmp_path / "held", model_folder("wan_t2v"), worker_timeout_s=DEATH_TIMEOUT_S) as started:
        yield started


def test_kill_9_of_a_transformer_mid_denoise(fleet: HeldFleet, tmp_path: Path) -> None:
    """The encoder's room lives, so the job costs one more denoise and no more encode."""
    with fleet.client() as client:
        before = half_done(fleet, client)
        job_id = before.job_id
        fleet.kill("transformer-0")
        fleet.start("transformer-0")
        array = result(client, job_id, tmp_path)
        after = client.get_job(job_id)
    assert [attempt.rank for attempt in after.attempts] == [before.transformer_rank]
    assert after.generation == before.generation
    assert after.encoder_rank == before.encoder_rank
    assert np.array_equal(array, reference.fused(fleet.plain_model, **plain(LONG)))


def test_kill_9_of_the_encoder_that_holds_the_room(fleet: HeldFleet, tmp_path: Path) -> None:
    """With no transformer to fetch it in time the room is lost; the job goes back and is encoded again."""
    with fleet.client() as client:
        fleet.kill("transformer-0")
        job_id = client.create_job("a big red circle", **FIELDS).job_id
        first = wait_state(client, job_id, JOB_STATE_ENCODED).encoder_rank
        fleet.kill("encoder-0")
        fleet.start("encoder-0")
        fleet.start("transformer-0")
        array = result(client, job_id, tmp_path)
        assert client.get_job(job_id).encoder_rank != first
    assert np.array_equal(array, reference.fused(fleet.plain_model, **plain(FIELDS)))


def test_kill_9_of_the_controller_with_20_jobs_in_flight(fleet: HeldFleet, tmp_path: Path) -> None:
    with fleet.client() as client:
        ids = [client.create_job("a big red circle", **{**FIELDS, "seed": n % 3}).job_id for n in range(20)]
        wait_until(lambda: client.get_job(ids[2]).state >= JOB_STATE_DENOISING, 120, "some jobs are under way")
        fleet.kill("controller")
        fleet.start("controller")
        arrays = [result(client, job_id, tmp_path) for job_id in ids]
        attempts = [len(client.get_job(job_id).attempts) for job_id in ids]
    expected = [reference.fused(fleet.plain_model, **plain({**FIELDS, "seed": seed})) for seed in range(3)]
    for number, array in enumerate(arrays):
        assert np.array_equal(array, expected[number % 3])
    assert sum(attempts) == 0, "a controller's restart costs no finished or running work"


def test_sigterm_drains_and_nothing_is_left_in_shared_memory(fleet: HeldFleet, tmp_path: Path) -> None:
    pids = {process.pid for process in fleet.processes.values()}
    with fleet.client() as client:
        job_id = half_done(fleet, client).job_id
        fleet.processes["transformer-0"].terminate()
        wait_until(
            lambda: worker_of(fleet, "transformer-0").status.state == WORKER_STATE_DRAINING, 60, "it is told to stop"
        )
        fleet.release("transformer-0")
        array = result(client, job_id, tmp_path)
        assert client.get_job(job_id).attempts == []
        assert fleet.processes["transformer-0"].wait(60) == 0
        fleet.kill("encoder-0")  # leaves its arena
    assert np.array_equal(array, reference.fused(fleet.plain_model, **plain(LONG)))
    fleet.__exit__(None, None, None)
    sweep()
    left = [name for name in os.listdir("/dev/shm") if name.startswith(NAME_PREFIX)]
    assert not [name for name in left if int(name.removeprefix(NAME_PREFIX).partition("-")[0]) in pids]


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "output_format"}
