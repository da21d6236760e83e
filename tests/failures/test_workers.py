"""Workers that die, stop or hang: what they cost, and that what they do too late counts for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import ended, result, worker_of
from tests.failures.conftest import ATTEMPTS_MAX, STALL_TIMEOUT_S
from tests.fleet.held import WAIT_S, HeldFleet, create, dispatched, name_of, reasons, wait_state, worker_named
from tests.fleet.processes import wait_until
from triptych.v1.dispatch_pb2 import RING_PHASE2
from triptych.v1.job_pb2 import (
    JOB_STATE_DECODING,
    JOB_STATE_DENOISED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODING,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
)
from triptych_client import Client

ENCODERS, TRANSFORMERS = ("encoder-0", "encoder-1"), ("transformer-0", "transformer-1")


def silence(fleet: HeldFleet, rank: int) -> str:
    """Why the attempt of a dead worker ended."""
    return f"rank {rank} was silent for {fleet.worker_timeout_s:g} s"


def back_again(fleet: HeldFleet, client: Client, name: str, old_rank: int) -> int:
    """Wait until a process that was taken for dead is back under another rank and holds nothing; that rank."""

    def is_back() -> bool:
        worker = worker_named(fleet, client, name)
        return worker is not None and worker.rank != old_rank and worker.status.progress.job_id == ""

    wait_until(is_back, WAIT_S, f"{name} has registered anew and is idle")
    wait_until(
        lambda: worker_of(fleet, name).status.room_count == 0, WAIT_S, f"{name} has dropped what it made too late"
    )
    worker = worker_named(fleet, client, name)
    assert worker is not None
    return worker.rank


@pytest.mark.parametrize("role", ["transformer", "encoder"])
def test_a_stopped_process_is_dead_and_what_it_does_later_is_dropped(
    fleet: HeldFleet, client: Client, tmp_path: Path, role: str
) -> None:
    """SIGSTOP in the middle of a stage, SIGCONT when another has its job: the encoder then still writes its room."""
    names, state = (TRANSFORMERS, JOB_STATE_DENOISING) if role == "transformer" else (ENCODERS, JOB_STATE_ENCODING)
    with fleet.held(*names):
        job_id = create(client)
        job = wait_state(client, job_id, state)
        rank = job.transformer_rank or job.encoder_rank
        name = name_of(fleet, client, rank)
        fleet.wait_held(name)
        fleet.processes[name].send_signal(signal.SIGSTOP)
        fleet.release(next(other for other in names if other != name))
        array = result(client, job_id, tmp_path)
        job = client.get_job(job_id)
        assert reasons(job) == [(role, rank, silence(fleet, rank))]
        assert job.generation == 0, "the ring delivered the same dispatch again"
        fleet.processes[name].send_signal(signal.SIGCONT)
        wait_until(lambda: worker_named(fleet, client, name) is not None, WAIT_S, f"{name} has registered anew")
    assert np.array_equal(array, fleet.expected())
    new_rank = back_again(fleet, client, name, rank)
    assert client.get_job(job_id) == job, "nothing that it did later has changed the job"
    if role == "transformer":
        again = create(client, transformer_rank=new_rank)
        assert ended(client, again).transformer_rank == new_rank
    else:
        with fleet.held(next(other for other in names if other != name)):
            assert ended_one(client, create(client), create(client)) == new_rank


def ended_one(client: Client, *job_ids: str) -> int:
    """The encoder of the first of the jobs that ends."""
    wait_until(
        lambda: any(client.get_job(job_id).state == JOB_STATE_SUCCEEDED for job_id in job_ids), WAIT_S, "one has ended"
    )
    return next(job.encoder_rank for job in map(client.get_job, job_ids) if job.state == JOB_STATE_SUCCEEDED)


@pytest.mark.parametrize("role", ["transformer", "encoder"])
def test_a_stage_that_hangs_is_as_dead_though_its_process_lives(
    impatient_fleet: HeldFleet, client: Client, tmp_path: Path, role: str
) -> None:
    """Its heartbeats go on all the time; only the stage's thread waits."""
    fleet = impatient_fleet
    names, state = (TRANSFORMERS, JOB_STATE_DENOISING) if role == "transformer" else (ENCODERS, JOB_STATE_ENCODING)
    with fleet.held(*names):
        job_id = create(client)
        job = wait_state(client, job_id, state)
        rank = job.transformer_rank or job.encoder_rank
        name = name_of(fleet, client, rank)
        fleet.wait_held(name)
        fleet.release(next(other for other in names if other != name))
        array = result(client, job_id, tmp_path)
        assert reasons(client.get_job(job_id)) == [(role, rank, f"no progress for {STALL_TIMEOUT_S:g} s")]
        assert fleet.processes[name].poll() is None
    assert np.array_equal(array, fleet.expected())
    back_again(fleet, client, name, rank)


def test_a_dead_encoder_does_not_cost_a_finished_denoise(fleet: HeldFleet, client: Client, tmp_path: Path) -> None:
    """Its room is gone, and nobody needs it any more."""
    with fleet.held("decoder-0"):
        job_id = create(client)
        job = wait_state(client, job_id, JOB_STATE_DECODING)
        fleet.wait_held("decoder-0")
        name = name_of(fleet, client, job.encoder_rank)
        fleet.kill(name)
        wait_until(lambda: worker_named(fleet, client, name) is None, WAIT_S, f"{name} is declared dead")
    array = result(client, job_id, tmp_path)
    after = client.get_job(job_id)
    assert (list(after.attempts), after.generation) == ([], 0)
    assert (after.encoder_rank, after.transformer_rank) == (job.encoder_rank, job.transformer_rank)
    assert np.array_equal(array, fleet.expected())


def test_a_dead_transformer_with_the_latents_costs_one_denoise_and_no_encode(
    fleet: HeldFleet, client: Client, tmp_path: Path
) -> None:
    """A job waits for the only decoder, which another job holds, when the room that it is to be read from goes."""
    with fleet.held("decoder-0"):
        blocker = create(client, seed=8)
        wait_state(client, blocker, JOB_STATE_DECODING)
        job_id = create(client)
        job = wait_state(client, job_id, JOB_STATE_DENOISED)
        dispatched(fleet, RING_PHASE2, job_id)
        dead = name_of(fleet, client, job.transformer_rank)
        other = next(name for name in TRANSFORMERS if name != dead)
        before = fleet.steps_made(other)
        fleet.kill(dead)
        wait_until(lambda: client.get_job(job_id).attempts, WAIT_S, "the job is sent back")
        wait_until(lambda: client.get_job(job_id).state == JOB_STATE_DENOISED, WAIT_S, "it is denoised again")
        assert fleet.steps_made(other) - before == 4, "one denoise"
    array = result(client, job_id, tmp_path)
    after = client.get_job(job_id)
    assert [(role, rank) for role, rank, _ in reasons(after)] == [("decoder", job.transformer_rank)]
    assert after.generation == 1
    assert after.encoder_rank == job.encoder_rank
    assert after.transformer_rank not in (0, job.transformer_rank)
    assert np.array_equal(array, fleet.expected())
    assert ended(client, blocker).state == JOB_STATE_SUCCEEDED


def test_a_job_that_kills_its_workers_is_a_dead_letter_and_the_fleet_goes_on(
    fleet: HeldFleet, client: Client, tmp_path: Path
) -> None:
    steps = 13
    known = {dead.job_id for dead in client.list_jobs(dead_letters_only=True)}
    with fleet.poisoned(steps):
        job_id = create(client, num_inference_steps=steps)
        job = ended(client, job_id)
        assert job.state == JOB_STATE_FAILED
        assert job.dead_letter
        assert job.error.startswith(f"gave up after {ATTEMPTS_MAX} attempts; the last: rank ")
        died = [rank for _, rank, _ in reasons(job)]
        assert len(set(died)) == ATTEMPTS_MAX
        assert reasons(job) == [("transformer", rank, silence(fleet, rank)) for rank in died]
        assert [fleet.processes[name].poll() for name in TRANSFORMERS] == [-signal.SIGKILL] * ATTEMPTS_MAX
        for name in TRANSFORMERS:
            fleet.start(name)
        assert np.array_equal(result(client, create(client), tmp_path), fleet.expected())
        assert {dead.job_id for dead in client.list_jobs(dead_letters_only=True)} == {job_id} | known
    shown = command(fleet, "jobs", "--dead", job_id)
    assert all(reason in shown for _, _, reason in reasons(job))
    retried = dict(line.split() for line in command(fleet, "jobs", "--dead", "--retry", "all").splitlines())
    assert set(retried) == {job_id} | known
    new = retried[job_id]
    array = result(client, new, tmp_path)
    assert np.array_equal(array, fleet.expected(num_inference_steps=steps))
    assert client.get_job(new).retry_of == job_id
    assert client.get_job(job_id) == job
    assert client.retry_job(job_id).job_id == new


def command(fleet: HeldFleet, *arguments: str) -> str:
    """What the `triptych` command prints."""
    words = (sys.executable, "-m", "triptych_client.cli", *arguments, "--endpoint", fleet.endpoint)
    env = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=60, check=True).stdout


def test_a_wrong_checksum_is_read_again_and_then_made_again(fleet: HeldFleet, client: Client, tmp_path: Path) -> None:
    """Bytes of the latents are changed in their owner's memory while the job waits for the decoder."""
    with fleet.held("decoder-0"):
        blocker = create(client, seed=8)
        wait_state(client, blocker, JOB_STATE_DECODING)
        job_id = create(client)
        job = wait_state(client, job_id, JOB_STATE_DENOISED)
        room = dispatched(fleet, RING_PHASE2, job_id).room
        assert room.owner_rank == job.transformer_rank
        with Path(room.arena).open("r+b") as arena:
            arena.seek(room.offset_bytes + room.size_bytes - 64)
            changed = bytes(byte ^ 0xFF for byte in arena.read(64))
            arena.seek(-64, os.SEEK_CUR)
            arena.write(changed)
    array = result(client, job_id, tmp_path)
    after = client.get_job(job_id)
    ((role, _, reason),) = reasons(after)
    assert role == "decoder"
    assert "wrong checksum, 2 times" in reason
    assert after.encoder_rank == job.encoder_rank
    assert np.array_equal(array, fleet.expected())
    assert ended(client, blocker).attempts == []
