"""A transformer of several processes: its bits, its end as one, and settings that can't be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.adapters import loras
from tests.e2e import reference
from tests.e2e.conftest import result
from tests.fleet.processes import DEATH_TIMEOUT_S, EVENTUALLY_S, Fleet, wait_until
from tests.parallel.run import JOBS, SMALL
from triptych.config import WorkerConfig, load
from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED
from triptych_client.fused import FusedModel
from triptych_client.request import build_request

RUN_TIMEOUT_S = 200.0
END_TIMEOUT_S = 30.0
MANY_STEPS = 150
"""So that a job is killed in its middle."""


@pytest.mark.parametrize(
    ("kind", "computed"),
    [
        # Of 4 steps with two branches each process has one; of those with one branch the leader has it.
        ("cfg", [4, 4, "cancelled", 4, 4, 4]),
        ("ulysses", [8, 4, "cancelled", 8, 8, 8]),
    ],
)
def test_several_processes_give_the_bits_of_one(
    kind: str, computed: list[object], tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    """Also after a job without guidance, one of another size, one that was cancelled, and one with an adapter."""
    folder = model_folder("wan_t2v")
    registry = tmp_path / "adapters"
    loras.save(registry / "style.safetensors", loras.tensors(loras.whole(folder), "transformer"))
    command = [sys.executable, "-m", "tests.parallel.run", kind, folder, str(registry), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [kind, "2", *map(str, computed)]
    alone = FusedModel.load(WorkerConfig(model=folder, threads=1, adapters=str(registry)))
    for number, fields in enumerate(JOBS):
        (expected,) = alone.run(build_request("a big red circle", **{**SMALL, **fields})).values()
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), np.asarray(expected[0])), fields  # type: ignore[index]


@pytest.mark.parametrize("kind", ["cfg", "ulysses"])
def test_means_of_the_role_hold_in_each_process(kind: str, tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """A step cache, which keeps a state for each branch, and an offload: the bits of one process with them."""
    folder = model_folder("wan_t2v")
    cache = {"config": "FirstBlockCacheConfig", "threshold": 0.5}
    means = json.dumps({"components": {"transformer": {"cache": cache, "offload": {"kind": "group"}}}})
    command = [sys.executable, "-m", "tests.parallel.run", kind, folder, "", str(tmp_path), "--means", means]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    alone = FusedModel.load(WorkerConfig(model=folder, threads=1, means=means))
    for number, fields in enumerate(JOBS):
        if "adapters" in fields:
            continue
        (expected,) = alone.run(build_request("a big red circle", **{**SMALL, **fields})).values()
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), np.asarray(expected)[0])
    assert not np.array_equal(np.load(tmp_path / "0.npy"), reference.fused(folder, **{**SMALL, **JOBS[0]}))


def test_the_processes_of_a_worker_end_as_one(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """A member in the middle of a job, which comes out right once the worker is started again; then the leader."""
    folder = model_folder("wan_t2v")
    flags = {"transformer-0": ("--parallel", "cfg", "--devices", "cpu,cpu")}
    fields = {**SMALL, "num_inference_steps": MANY_STEPS, "seed": 5}
    with Fleet(tmp_path / "fleet", folder, flags_by_name=flags, worker_timeout_s=DEATH_TIMEOUT_S) as fleet:
        with fleet.client() as client:
            job = client.create_job("a big red circle", output_format="npy", **fields)
            wait_until(lambda: client.get_job(job.job_id).step > 0, EVENTUALLY_S, "the job runs")
            end(fleet, 1)
            fleet.start("transformer-0")
            made = result(client, job.job_id, tmp_path)
            assert [attempt.kind for attempt in client.get_job(job.job_id).attempts] == [ATTEMPT_KIND_WORKER_DIED]
        end(fleet, 0)
    assert np.array_equal(made, reference.fused(folder, **fields))


def end(fleet: Fleet, victim: int) -> None:
    """kill -9 one of the transformer's processes; all end."""
    processes = group_of(fleet)
    processes[victim].kill()
    fleet.processes["transformer-0"].wait(END_TIMEOUT_S)
    _gone, alive = psutil.wait_procs(processes[1:], timeout=END_TIMEOUT_S)
    assert not alive


def group_of(fleet: Fleet) -> list[psutil.Process]:
    """The transformer's processes, its leader first."""
    leader = psutil.Process(fleet.processes["transformer-0"].pid)
    members = [one for one in leader.children() if "services.worker.group_member" in one.cmdline()]
    assert len(members) == 1
    return [leader, *members]


@pytest.mark.parametrize(
    "flags", [("--parallel", "cfg"), ("--parallel", "cfg", "--devices", "cpu"), ("--devices", "cpu,cpu")]
)
def test_jobs_are_divided_among_two_devices_at_least(flags: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"devices.*two or more"):
        load(WorkerConfig, flags)
