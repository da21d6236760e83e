"""A whole fleet: rings over verbs, mixed with a worker that uses rpc, and rooms over Mooncake and RDMA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import SMALL, result, worker_of
from tests.fleet.processes import Fleet, wait_until
from tests.rdma.warm import WarmProcess, WarmServer
from triptych.v1.job_pb2 import JOB_STATE_DENOISING
from triptych_client import Client

FIELDS = {**SMALL, "num_frames": 5, "guidance_scale": 3.5, "num_inference_steps": 8}
PROMPT = "a big red circle"
PATIENCE_S = 200.0
"""Bound on one job, and on a start: an emulated machine imports torch in a minute."""
MOONCAKE = ("--mover", "mooncake", "--mooncake", "rdma")
Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.timeout(500)


class WarmFleet(Fleet):
    """A fleet whose processes are forked by a warm server."""

    def __init__(self, warm: WarmServer, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._warm = warm

    def _launch(self, command: list[str], log: Path, env: Mapping[str, str]) -> Any:
        return self._warm.start(command[2:], log)  # without `python -m`


@pytest.fixture(scope="module")
def model(warm: WarmServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Wan."""
    folder = tmp_path_factory.mktemp("model")
    warm.run(["tests.models", "wan_t2v", str(folder / "wan")], folder / "log", PATIENCE_S)
    return str(folder / "wan")


@pytest.fixture(scope="module")
def reference(warm: WarmServer, model: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Array]:
    """What the three stages give in one process, which is diffusers' own to the bit (tests/e2e/test_parity.py).

    It is made while the fleet starts; the call waits for it.
    """
    out = tmp_path_factory.mktemp("reference") / "out.npy"
    flags = ("--fused", "--model", model, "--threads", "1")
    making = generate(warm, out, *flags)
    return lambda: loaded(out, making)


@pytest.fixture(scope="module")
def fleet(
    warm: WarmServer,
    model: str,
    reference: Callable[[], Array],
    devices: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """One encoder, two transformers of which one has no RDMA rings, one decoder."""
    here, there = (("--rings", "verbs", "--rdma-device", device) for device in devices)
    flags = {
        "controller": here,
        "encoder-0": here + MOONCAKE,
        "transformer-0": there + MOONCAKE,
        "transformer-1": ("--rings", "rpc", "--rdma-device", devices[0], *MOONCAKE),
        "decoder-0": there + MOONCAKE,
    }
    with WarmFleet(
        warm,
        tmp_path_factory.mktemp("fleet"),
        model,
        counts={"transformer": 2},
        controller_flags=("--worker-timeout-s", "15"),  # an emulated machine is slow, not dead
        flags_by_name=flags,
        ready_timeout_s=PATIENCE_S,
    ) as started:
        yield started


def generate(warm: WarmServer, out: Path, *flags: str) -> WarmProcess:
    """`triptych generate`, in a warm process."""
    fields = [f"--{name.replace('_', '-')}={value}" for name, value in FIELDS.items()]
    argv = ["triptych_client.cli", "generate", PROMPT, "--quiet", "-o", str(out), *fields, *flags]
    return warm.start(argv, out.with_suffix(".log"))


def loaded(out: Path, making: WarmProcess) -> Array:
    """What a process has written, once it has ended."""
    making.wait(PATIENCE_S)
    assert out.exists(), out.with_suffix(".log").read_text()
    array: Array = np.load(out)
    assert array.std() > 0, "a flat picture proves nothing"
    return array


def test_generate_over_rdma_gives_the_same_bits(
    fleet: Fleet, warm: WarmServer, reference: Callable[[], Array], tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    ours = loaded(out, generate(warm, out, "--endpoint", fleet.endpoint))
    assert np.array_equal(ours, reference())
    for name in ("transformer-0", "transformer-1", "decoder-0"):
        worker = worker_of(fleet, name)
        assert worker.info.mooncake.name == "rdma"
        assert set(worker.status.fetch_count_by_mover) <= {"mooncake"}
        assert worker.status.rings.name == ("rpc" if name == "transformer-1" else "verbs")
    assert worker_of(fleet, "decoder-0").status.fetch_count_by_mover == {"mooncake": 1}


def test_the_fleet_says_what_is_in_use_and_why(fleet: Fleet, devices: tuple[str, str]) -> None:
    with fleet.client() as client:
        status = client.get_fleet()
    assert {ring.driver for ring in status.rings} == {"verbs"}
    assert all(devices[0] in ring.driver_reason for ring in status.rings)
    assert sorted(worker.status.rings.name for worker in status.workers) == ["rpc", "verbs", "verbs", "verbs"]


def test_kill_9_of_a_worker_that_holds_a_lease_over_verbs(
    fleet: Fleet, reference: Callable[[], Array], tmp_path: Path
) -> None:
    pid = fleet.processes["transformer-0"].pid
    with fleet.client() as client:
        (doomed,) = [worker.rank for worker in client.get_fleet().workers if worker.info.process_id == pid]
        job_id = client.create_job(PROMPT, **FIELDS, transformer_rank=doomed, output_format="npy").job_id
        wait_until(lambda: being_denoised(client, job_id), PATIENCE_S, "the job is being denoised")
        fleet.kill("transformer-0")
        array = result(client, job_id, tmp_path)
        job = client.get_job(job_id)
    assert [attempt.rank for attempt in job.attempts] == [doomed]
    assert job.transformer_rank != doomed
    assert np.array_equal(array, reference())


def being_denoised(client: Client, job_id: str) -> bool:
    job = client.get_job(job_id)
    return job.state == JOB_STATE_DENOISING and job.step > 1
