"""Jobs that are stopped, forgotten by their client, refused, or interrupted by the controller's own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.e2e.conftest import ended, job_count, result, worker_of
from tests.fleet.held import PROMPT, WAIT_S, HeldFleet, create, name_of, wait_state
from tests.fleet.processes import wait_until
from triptych.errors import InvalidRequest
from triptych.v1.dispatch_pb2 import RING_PHASE1, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DECODING,
    JOB_STATE_DENOISED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODING,
    JOB_STATE_EXPIRED,
    JOB_STATE_SUCCEEDED,
    Job,
    JobState,
)
from triptych.v1.ring_service_pb2 import PublishRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub
from triptych_client import Client

DEADLINES_S = (2, 6, 18, 54)
ENCODERS, TRANSFORMERS = ("encoder-0", "encoder-1"), ("transformer-0", "transformer-1")
STAGES = [
    pytest.param(ENCODERS, JOB_STATE_ENCODING, id="encoder"),
    pytest.param(TRANSFORMERS, JOB_STATE_DENOISING, id="transformer"),
    pytest.param(("decoder-0",), JOB_STATE_DECODING, id="decoder"),
]


# -- stopped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize(("names", "state"), STAGES)
def test_a_running_job_is_stopped(
    fleet: HeldFleet, client: Client, names: tuple[str, ...], state: JobState.ValueType, how: str
) -> None:
    """The job is over at once, whatever its worker does; that one goes no step further than the one in hand."""
    deadlines = [timedelta(seconds=seconds) for seconds in DEADLINES_S] if how == "deadline" else [None]
    job = next(filter(None, (stopped(fleet, client, names, state, deadline) for deadline in deadlines)))
    wait_until(
        lambda: all(worker_of(fleet, one).status.room_count == 0 for one in (*ENCODERS, *TRANSFORMERS)),
        WAIT_S,
        "no room is left",
    )
    assert client.get_job(job.job_id) == job
    assert job.attempts == []


def stopped(
    fleet: HeldFleet, client: Client, names: tuple[str, ...], state: JobState.ValueType, deadline: timedelta | None
) -> Job | None:
    """A job that is stopped while a worker is held in its stage; None where its deadline was too short for that."""
    with fleet.held(*names):
        job_id = create(client, num_inference_steps=8, deadline=deadline)

        def is_held_or_over() -> bool:
            job = client.get_job(job_id)
            is_held = job.state == state and fleet.is_held(worker_at(fleet, client, job))
            return is_held or job.state == JOB_STATE_EXPIRED

        wait_until(is_held_or_over, WAIT_S, f"{job_id} is held while it is {JobState.Name(state)}")
        job = client.get_job(job_id)
        if job.state == JOB_STATE_EXPIRED:
            return None
        name = worker_at(fleet, client, job)
        before = fleet.steps_made(name)
        if deadline is None:
            assert client.cancel_job(job_id).state == JOB_STATE_CANCELLED
        job = ended(client, job_id)
        assert job.state == (JOB_STATE_CANCELLED if deadline is None else JOB_STATE_EXPIRED)
        told = f'"told to stop the job", "job_id": "{job_id}"'
        wait_until(lambda: told in fleet.log(name), WAIT_S, f"{name} is told")
    wait_until(lambda: not worker_of(fleet, name).status.progress.job_id, WAIT_S, "its worker is idle")
    assert fleet.steps_made(name) - before == (state == JOB_STATE_DENOISING), "the step in hand, and no other"
    return job


def worker_at(fleet: HeldFleet, client: Client, job: Job) -> str:
    """The process that has a job."""
    return name_of(fleet, client, job.decoder_rank or job.transformer_rank or job.encoder_rank)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_job_that_waits_is_never_begun(fleet: HeldFleet, client: Client, how: str) -> None:
    with fleet.held(*ENCODERS):
        blockers = [create(client, seed=n) for n in range(2)]
        for job_id in blockers:
            wait_state(client, job_id, JOB_STATE_ENCODING)
        job_id = create(client, deadline=timedelta(seconds=1) if how == "deadline" else None)
        if how == "cancel":
            client.cancel_job(job_id)
        job = ended(client, job_id)
        assert job.state == (JOB_STATE_CANCELLED if how == "cancel" else JOB_STATE_EXPIRED)
    assert [ended(client, blocker).state for blocker in blockers] == [JOB_STATE_SUCCEEDED] * 2
    assert client.get_job(job_id) == job
    assert (job.encoder_rank, list(job.attempts)) == (0, [])


# -- the controller -----------------------------------------------------------------------------------------------


def test_a_killed_controller_takes_up_every_stage_where_it_was(
    fleet: HeldFleet, client: Client, tmp_path: Path
) -> None:
    """kill -9 with a job in each state that can be held: no stage is done twice, and no room is lost."""
    seeds = iter(range(100))
    with fleet.held("decoder-0"):
        decoding = create(client, seed=next(seeds))
        wait_state(client, decoding, JOB_STATE_DECODING)
        denoised = [create(client, seed=next(seeds))]  # with two, nothing new would be begun
        for job_id in denoised:
            wait_state(client, job_id, JOB_STATE_DENOISED)
        for name in TRANSFORMERS:
            fleet.hold(name)
        denoising = [create(client, seed=next(seeds)) for _ in range(2)]
        for job_id in denoising:
            wait_state(client, job_id, JOB_STATE_DENOISING)
        for name in ENCODERS:
            fleet.hold(name)
        encoding = [create(client, seed=next(seeds)) for _ in range(2)]
        for job_id in encoding:
            wait_state(client, job_id, JOB_STATE_ENCODING)
        queued = [create(client, seed=next(seeds)) for _ in range(3)]
        ids = [decoding, *denoised, *denoising, *encoding, *queued]
        before = {job_id: client.get_job(job_id) for job_id in ids}
        steps = {name: fleet.steps_made(name) for name in TRANSFORMERS}
        epoch = client.get_fleet().epoch
        fleet.kill("controller")
        fleet.start("controller")
        wait_until(lambda: len(client.get_fleet().workers) == 5, WAIT_S, "all workers are back")
        assert client.get_fleet().epoch == epoch + 1
        for name in ENCODERS + TRANSFORMERS:
            fleet.release(name)
    for seed, job_id in enumerate(ids):
        assert np.array_equal(result(client, job_id, tmp_path), fleet.expected(seed=seed))
        after = client.get_job(job_id)
        assert (list(after.attempts), after.generation) == ([], 0)
        for role in ("encoder", "transformer", "decoder"):
            rank = getattr(before[job_id], f"{role}_rank")
            assert rank in (0, getattr(after, f"{role}_rank")), f"{role} did it before, and none again"
    made = sum(fleet.steps_made(name) - steps[name] for name in TRANSFORMERS)
    assert made == 4 * len([*denoising, *encoding, *queued]), "nothing was denoised twice"


# -- clients ------------------------------------------------------------------------------------------------------


def test_a_job_outlives_its_client(fleet: HeldFleet, client: Client, tmp_path: Path) -> None:
    words = ("generate", PROMPT, "-o", str(tmp_path / "never.mp4"), "--endpoint", fleet.endpoint, "--num-frames", "5")
    sizes = ("--height", "32", "--width", "64", "--num-inference-steps", "4", "--quiet")
    with fleet.held(*TRANSFORMERS):
        before = {job.job_id for job in client.list_jobs()}
        command = (sys.executable, "-m", "triptych_client.cli", *words, *sizes)
        with subprocess.Popen(command, env=dict(os.environ)) as gone:
            wait_until(lambda: {job.job_id for job in client.list_jobs()} - before, WAIT_S, "its job is accepted")
            ((job_id),) = {job.job_id for job in client.list_jobs()} - before
            wait_state(client, job_id, JOB_STATE_DENOISING)
            gone.send_signal(signal.SIGKILL)
    assert ended(client, job_id).state == JOB_STATE_SUCCEEDED
    assert client.download_result(job_id, tmp_path / "kept.mp4").stat().st_size > 0
    assert not (tmp_path / "never.mp4").exists()


def test_a_bad_request_queues_nothing(fleet: HeldFleet, client: Client) -> None:
    before = job_count(fleet)
    deep: object = 0.5
    for _ in range(20):
        deep = [deep]
    bad = [
        {"num_inference_steps": 0},
        {"parameters": {"sigmas": deep}},
        {"parameters": {"sigmas": [0.5] * 20_000}},
        {"num_frames": 4095, "height": 8192, "width": 8192, "num_inference_steps": 1000},
    ]
    for fields in bad:
        with pytest.raises(InvalidRequest, match="; accepted: "):
            create(client, **fields)
    assert job_count(fleet) == before
    assert all(ring.ready_count == ring.leased_count == 0 for ring in client.get_fleet().rings)


# -- a full ring --------------------------------------------------------------------------------------------------


def test_a_full_ring_is_waited_for(fleet: HeldFleet, client: Client, tmp_path: Path) -> None:
    """Somebody fills phase1 with a job that already runs; the encoders keep their leases and try again."""
    with fleet.held(*TRANSFORMERS):
        ids = [create(client, seed=n) for n in range(2)]
        for job_id in ids:
            wait_state(client, job_id, JOB_STATE_DENOISING)
        for name in ENCODERS:
            fleet.hold(name)
        ids += [create(client, seed=n) for n in (2, 3)]
        for job_id in ids[2:]:
            wait_state(client, job_id, JOB_STATE_ENCODING)
        with grpc.insecure_channel(fleet.endpoint) as channel:
            rank = next(worker.rank for worker in client.get_fleet().workers if worker.info.role == ROLE_ENCODER)
            refused = fill(channel, rank, ids[0])
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "200"
        for name in ENCODERS:
            fleet.release(name)
        for name in ENCODERS:
            wait_until(lambda n=name: "no free slot among" in fleet.log(n), WAIT_S, f"{name} has met the full ring")
    for seed, job_id in enumerate(ids):
        assert np.array_equal(result(client, job_id, tmp_path), fleet.expected(seed=seed))
        assert client.get_job(job_id).attempts == []


def fill(channel: grpc.Channel, rank: int, job_id: str) -> grpc.RpcError:
    """Publish a job that already runs into phase1, in an encoder's name, until that is refused; the refusal."""
    for _ in range(10_000):
        dispatch = Dispatch(job_id=job_id, role=ROLE_TRANSFORMER, sender_rank=rank)
        try:
            RingServiceStub(channel).Publish(PublishRequest(ring=RING_PHASE1, rank=rank, dispatch=dispatch), timeout=30)
        except grpc.RpcError as error:
            return error
    raise AssertionError("the ring took everything")
