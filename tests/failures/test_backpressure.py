"""A full arena is back-pressure: the worker stops claiming, and nothing is lost or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import SMALL
from tests.fleet.processes import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED
from triptych.v1.worker_pb2 import WORKER_STATE_FULL

JOB_COUNT = 12


def test_an_encoder_with_a_full_arena_waits_and_goes_on(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """Nobody reads the encoder's rooms until a transformer comes; the arena holds only a few of them."""
    arena = ("--arena-bytes", str(512 * 2**10))
    model = model_folder("wan_t2v")
    with Fleet(tmp_path, model, counts={"transformer": 0}, worker_flags=arena) as fleet, fleet.client() as client:
        fields = {**SMALL, "num_frames": 5}
        ids = [client.create_job("a big red circle", **{**fields, "seed": n}).job_id for n in range(JOB_COUNT)]

        def is_full() -> bool:
            return WORKER_STATE_FULL in [worker.status.state for worker in client.get_fleet().workers]

        wait_until(is_full, 60, "the encoder says that its arena is full")
        encoded = sum(client.get_job(job_id).encoder_rank > 0 for job_id in ids)
        assert 0 < encoded < JOB_COUNT, "some jobs wait in the controller, unclaimed"
        fleet.start("transformer-0")
        for job_id in ids:
            for _ in client.watch_job(job_id):
                pass
        assert {client.get_job(job_id).state for job_id in ids} == {JOB_STATE_SUCCEEDED}
        assert sum(len(client.get_job(job_id).attempts) for job_id in ids) == 0
        wait_until(
            lambda: all(w.status.room_count == 0 for w in client.get_fleet().workers), 30, "all rooms are released"
        )
