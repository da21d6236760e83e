"""A whole fleet: rings over verbs, mixed with a worker that uses rpc, and rooms over Mooncake and RDMA."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.e2e import reference
from tests.e2e.conftest import SMALL, result, worker_of
from tests.e2e.fleet import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DENOISING
from triptych_client import Client

FIELDS = {**SMALL, "num_frames": 5, "guidance_scale": 3.5}
LONG = {**FIELDS, "num_inference_steps": 12}
PATIENCE_S = 200.0
"""Bound on one job, and on a start: an emulated machine imports torch in a minute."""
MOONCAKE = ("--mover", "mooncake", "--mooncake", "rdma")
pytestmark = pytest.mark.timeout(500)


@pytest.fixture(scope="module")
def fleet(devices: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One encoder, two transformers of which one has no RDMA rings, one decoder."""
    folder = tmp_path_factory.mktemp("rdma")
    here, there = (("--rings", "verbs", "--rdma-device", device) for device in devices)
    flags = {
        "controller": here,
        "encoder-0": here + MOONCAKE,
        "transformer-0": there + MOONCAKE,
        "transformer-1": ("--rings", "rpc", "--rdma-device", devices[0], *MOONCAKE),
        "decoder-0": there + MOONCAKE,
    }
    with Fleet(
        folder / "fleet",
        models.wan_t2v(folder / "model"),
        counts={"transformer": 2},
        controller_flags=("--worker-timeout-s", "15"),  # an emulated machine is slow, not dead
        flags_by_name=flags,
        env={"MC_WORKERS_PER_CTX": "1"},  # Mooncake's default spins on every core of a small machine
        ready_timeout_s=PATIENCE_S,
    ) as started:
        yield started


def test_generate_over_rdma_gives_the_same_bits(fleet: Fleet, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "triptych_client.cli", "generate", "a big red circle", "--quiet", "-o", str(out)]
    subprocess.run([*command, "--endpoint", fleet.endpoint, *flags], check=True, timeout=PATIENCE_S)
    assert np.array_equal(np.load(out), reference.fused(fleet.model, **FIELDS))
    for name in ("transformer-0", "transformer-1", "decoder-0"):
        worker = worker_of(fleet, name)
        assert worker.mooncake.name == "rdma"
        assert set(worker.fetch_count_by_mover) <= {"mooncake"}
        assert worker.rings.name == ("rpc" if name == "transformer-1" else "verbs")
    assert worker_of(fleet, "decoder-0").fetch_count_by_mover == {"mooncake": 1}


def test_status_says_what_is_in_use_and_why(fleet: Fleet, devices: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "triptych_client.cli", "status", "--once", "--endpoint", fleet.endpoint]
    done = subprocess.run([*command, "--json"], check=True, timeout=PATIENCE_S, capture_output=True, text=True)
    status = json.loads(done.stdout)
    assert {ring["driver"] for ring in status["rings"]} == {"verbs"}
    assert all(devices[0] in ring["driver_reason"] for ring in status["rings"])


def test_kill_9_of_a_worker_that_holds_a_lease_over_verbs(fleet: Fleet, tmp_path: Path) -> None:
    pid = fleet.processes["transformer-0"].pid
    with fleet.client() as client:
        (doomed,) = [worker.rank for worker in client.get_fleet().workers if worker.process_id == pid]
        fields = {**LONG, "transformer_rank": doomed, "output_format": "npy"}
        job_id = client.create_job("a big red circle", **fields).job_id
        wait_until(lambda: being_denoised(client, job_id), PATIENCE_S, "the job is being denoised")
        fleet.kill("transformer-0")
        array = result(client, job_id, tmp_path)
        job = client.get_job(job_id)
    assert [attempt.rank for attempt in job.attempts] == [doomed]
    assert job.transformer_rank != doomed
    assert np.array_equal(array, reference.fused(fleet.model, **LONG))


def being_denoised(client: Client, job_id: str) -> bool:
    job = client.get_job(job_id)
    return job.state == JOB_STATE_DENOISING and job.step > 1
