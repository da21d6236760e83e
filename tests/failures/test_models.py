"""A fleet that is killed with jobs in it, and started with another model on the same state folder: real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.held import WAIT_S, wait_state
from tests.fleet.processes import DEATH_TIMEOUT_S, Fleet, wait_until
from triptych.stages.fake import expected_outputs, fake_model
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODED,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
)
from triptych_client import Client

OTHER = "another"
COMMAND_TIMEOUT_S = 120.0
SLOW_S = 20.0
"""A transformer's time: a job is still denoised when the next is encoded, which takes a tenth of it."""


def command(fleet: Fleet, *arguments: str) -> str:
    """What the command prints, in one line for each paragraph."""
    found = subprocess.run(
        [sys.executable, "-m", "triptych_client.cli", *arguments, "--endpoint", fleet.endpoint],
        env={"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=True,
    )
    return found.stdout


def check_other(client: Client, job_id: str, seed: int, folder: Path) -> None:
    """The job has the other model's bits."""
    expected = expected_outputs(request(seed), OTHER)["images"]
    found = np.load(client.download_result(job_id, folder / f"{job_id}.npy"))
    assert np.array_equal(found, expected[0])  # type: ignore[index]
    assert not np.array_equal(found, expected_outputs(request(seed))["images"][0])  # type: ignore[index]


def other_fleet(folder: Path) -> Fleet:
    """A fleet of the other model, which soon counts the workers of the first as dead."""
    return fake_fleet(folder, 0.1, worker_flags=("--fake-model", OTHER), worker_timeout_s=DEATH_TIMEOUT_S)


def are_queued(client: Client, job_ids: list[str]) -> bool:
    return all(client.get_job(job_id).state == JOB_STATE_QUEUED for job_id in job_ids)


def test_another_model_on_the_same_state_folder(tmp_path: Path) -> None:
    folder, digest = tmp_path / "fleet", fake_model("fake").config_digest[:12]
    with fake_fleet(folder, SLOW_S) as fleet, fleet.client() as client:
        ids = [client.submit(request(seed)).job_id for seed in range(6)]
        wait_state(client, ids[0], JOB_STATE_DENOISING)
        wait_state(client, ids[1], JOB_STATE_ENCODED)
        assert client.get_job(ids[-1]).state == JOB_STATE_QUEUED
        for name in fleet.processes:
            fleet.kill(name)
    with other_fleet(folder) as fleet, fleet.client() as client:
        wait_until(lambda: are_queued(client, ids), WAIT_S, "what was begun goes back")
        own = client.submit(request(100)).job_id
        assert wait_over(client, [own], WAIT_S)[own].state == JOB_STATE_SUCCEEDED
        check_other(client, own, 100, tmp_path)
        (waiting,) = client.get_fleet().waiting_models
        assert (waiting.model, waiting.job_count) == ("fake", len(ids))
        sentence = f"{len(ids)} jobs wait for the model 'fake' (digest {digest}), which this fleet doesn't serve"
        assert sentence in command(fleet, "status", "--once")
        wait_until(lambda: sentence in fleet.log("controller"), WAIT_S, "the controller says so")
        assert f"fake {digest}" in command(fleet, "jobs")
        for job_id in ids:
            job = client.get_job(job_id)
            assert (job.state, job.model) == (JOB_STATE_QUEUED, "fake")
        cancelled = client.cancel_job(ids.pop())
        assert cancelled.state == JOB_STATE_CANCELLED
    with fake_fleet(folder, 0.1) as fleet, fleet.client() as client:
        for seed, job in enumerate(wait_over(client, ids, WAIT_S).values()):
            check(client, job, seed, tmp_path)
        assert client.get_job(own).model == OTHER
        assert not client.get_fleet().waiting_models


def test_what_waits_for_another_model_is_discarded_by_the_command(tmp_path: Path) -> None:
    folder, digest = tmp_path / "fleet", fake_model("fake").config_digest[:12]
    with fake_fleet(folder, SLOW_S) as fleet, fleet.client() as client:
        ids = [client.submit(request(seed)).job_id for seed in range(3)]
        for name in fleet.processes:
            fleet.kill(name)
    with other_fleet(folder) as fleet, fleet.client() as client:
        assert command(fleet, "jobs", "--discard-model", digest) == "3 ended\n"
        for job_id in ids:
            job = client.get_job(job_id)
            assert (job.state, job.error.startswith("discarded by the operator")) == (JOB_STATE_CANCELLED, True)
        assert not client.get_fleet().waiting_models
