"""A `/dev/shm` that is smaller than what is wanted of it: what never fits fails, what fits later waits and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_up import ENV, MODEL, wait_for
from tests.e2e.conftest import worker_of
from tests.failures.disks import Disk, small_disk
from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.processes import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_FAILED
from triptych_client import Client

ROOM = {"height": 128, "width": 128}
"""Rooms of this size take 192 KiB and a little."""
WAIT_S = 120.0
IN_SMALL_MEMORY = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/shm && exec "$@"')
"""Runs a command whose `/dev/shm` is the folder that comes first."""


def small_memory_fleet(folder: Path, memory: Disk, **settings: Any) -> Fleet:
    """A fleet whose processes share a `/dev/shm` of a test's own."""
    flags = ("--arena-bytes", str(2**20), "--release-timeout-s", "0")
    prefix = (*IN_SMALL_MEMORY, str(memory.path))
    return fake_fleet(folder, 0.1, worker_flags=flags, prefix=lambda _name: prefix, **settings)


@pytest.fixture
def memory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """What stands for `/dev/shm`; the test's parameter is its size in KiB."""
    with small_disk(tmp_path / "shm", request.param * 2**10) as disk:
        yield disk


def waits(client: Client) -> list[str]:
    """What workers say that they wait for."""
    return [worker.status.waiting_for for worker in client.get_fleet().workers if worker.status.waiting_for]


@pytest.mark.parametrize("memory", [128], indirect=True)
def test_a_room_that_is_larger_than_all_of_it_fails_at_once(tmp_path: Path, memory: Disk) -> None:
    with small_memory_fleet(tmp_path / "fleet", memory) as fleet, fleet.client() as client:
        job_id = client.submit(request(1, **ROOM)).job_id
        job = wait_over(client, [job_id], WAIT_S)[job_id]
        assert (job.state, len(job.attempts)) == (JOB_STATE_FAILED, 0)
        for said in ("room size in bytes", str(128 * 2**10), "/dev/shm", "--shm-size", "--arena-bytes"):
            assert said in job.error
        small = client.submit(request(2)).job_id
        check(client, wait_over(client, [small], WAIT_S)[small], 2, tmp_path)
        for name in ("encoder-0", "transformer-0", "decoder-0"):
            assert fleet.log(name).count("/dev/shm has 131072 bytes in all") <= 1
        assert "--shm-size" in fleet.log("decoder-0"), "each says at its start that there is too little"


@pytest.mark.parametrize("memory", [300], indirect=True)
def test_rooms_of_one_job_that_never_fit_beside_each_other_fail(tmp_path: Path, memory: Disk) -> None:
    """The transformer's waits for space that only its own job would free."""
    with small_memory_fleet(tmp_path / "fleet", memory) as fleet, fleet.client() as client:
        job_id = client.submit(request(1, **ROOM)).job_id
        job = wait_over(client, [job_id], WAIT_S)[job_id]
        assert (job.state, len(job.attempts)) == (JOB_STATE_FAILED, 0)
        assert "/dev/shm" in job.error
        assert "beside" in job.error
        small = client.submit(request(2)).job_id
        check(client, wait_over(client, [small], WAIT_S)[small], 2, tmp_path)


@pytest.mark.parametrize("memory", [700], indirect=True)
def test_encoders_that_run_ahead_leave_others_their_share(tmp_path: Path, memory: Disk) -> None:
    """Three rooms fit. Two of two encoders and one of the transformer do; three of encoders would stop everything."""
    counts = {"encoder": 2}
    with small_memory_fleet(tmp_path / "fleet", memory, counts=counts) as fleet, fleet.client() as client:
        ids = [client.submit(request(seed, **ROOM)).job_id for seed in range(8)]
        done = wait_over(client, ids, WAIT_S)
        for seed, job_id in enumerate(ids):
            check(client, done[job_id], seed, tmp_path, **ROOM)
            assert done[job_id].attempts == []


@pytest.mark.parametrize("memory", [700], indirect=True)
def test_space_that_others_have_is_waited_for_and_said_once(tmp_path: Path, memory: Disk) -> None:
    with small_memory_fleet(tmp_path / "fleet", memory) as fleet, fleet.client() as client:
        warm = client.submit(request(1)).job_id
        wait_over(client, [warm], WAIT_S)
        for name in ("encoder-0", "transformer-0"):
            wait_until(lambda n=name: not worker_of(fleet, n).status.room_count, WAIT_S, f"{name} has no room")
        memory.fill()
        job_id = client.submit(request(1, **ROOM)).job_id
        wait_until(lambda: waits(client), WAIT_S, "a worker says what it waits for")
        (said,) = waits(client)
        assert "/dev/shm has 0 bytes left" in said
        assert job_id in said
        command = (sys.executable, "-m", "triptych_client.cli", "status", "--once", "--endpoint", fleet.endpoint)
        shown = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=WAIT_S, check=True).stdout
        assert "has 0 bytes left" in " ".join(shown.split())
        tries = client.get_fleet().workers[0].heartbeat_time
        wait_until(lambda: client.get_fleet().workers[0].heartbeat_time.seconds > tries.seconds + 2, WAIT_S, "it waits")
        assert fleet.log("encoder-0").count("waits for space") == 1, "not with every try"
        memory.free()
        check(client, wait_over(client, [job_id], WAIT_S)[job_id], 1, tmp_path, **ROOM)
        wait_until(lambda: not waits(client), WAIT_S, "and that it no longer waits")


@pytest.mark.parametrize("memory", [256], indirect=True)
def test_up_and_doctor_say_that_there_is_too_little(tmp_path: Path, memory: Disk) -> None:
    cli = [*IN_SMALL_MEMORY, str(memory.path), sys.executable, "-m", "triptych_client.cli"]
    found = subprocess.run(
        [*cli, "doctor", "--json"], capture_output=True, text=True, env=ENV, timeout=WAIT_S, check=True
    )
    (finding,) = [one for one in json.loads(found.stdout) if one["what"] == "shared memory"]
    assert finding["state"] == "problem"
    assert "--shm-size" in finding["advice"]
    command = [*cli, "up", "--model", str(MODEL), "--state", str(tmp_path / "state"), "--endpoint", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV) as up:
        wait_for(up, "/dev/shm has 262144 bytes in all, and the arenas of this host want 3221225472")
        os.kill(up.pid, signal.SIGTERM)
        up.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("memory", [1024], indirect=True)
def test_arenas_of_a_small_memory_keep_to_their_share_and_give_back(memory: Disk) -> None:
    """See the program, which runs there."""
    program = [sys.executable, "-m", "tests.failures.small_arenas"]
    command = [*IN_SMALL_MEMORY, str(memory.path), *program]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
