"""What was accepted is never touched again, and is found wherever the whole is moved to."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.held import WAIT_S, name_of, wait_state, worker_named
from tests.fleet.processes import DEATH_TIMEOUT_S, Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DECODING, JOB_STATE_SUCCEEDED

JOBS = 3
DECODE_FLAGS = ("--fake-stage-seconds", "30")
"""A decoder takes a tenth of it: long enough to be met at work."""


def slow_decoders(folder: Path, count: int, **settings: Any) -> Fleet:
    flags = {f"decoder-{number}": DECODE_FLAGS for number in range(count)}
    settings = {"worker_timeout_s": DEATH_TIMEOUT_S, **settings}
    return fake_fleet(folder, 0.1, counts={"decoder": count}, flags_by_name=flags, **settings)


def files(results: Path, job_id: str) -> list[str]:
    return sorted(path.name for path in (results / job_id).rglob("*") if path.is_file())


def test_a_decoder_that_wakes_up_late_touches_nothing(tmp_path: Path) -> None:
    with slow_decoders(tmp_path / "fleet", 2) as fleet, fleet.client() as client:
        for seed in range(JOBS):
            job_id = client.submit(request(seed)).job_id
            rank = wait_state(client, job_id, JOB_STATE_DECODING).decoder_rank
            name = name_of(fleet, client, rank)
            fleet.processes[name].send_signal(signal.SIGSTOP)
            job = wait_over(client, [job_id], WAIT_S)[job_id]
            assert (job.state, len(job.attempts)) == (JOB_STATE_SUCCEEDED, 1)
            fleet.processes[name].send_signal(signal.SIGCONT)

            def is_idle(name: str = name, rank: int = rank) -> bool:
                worker = worker_named(fleet, client, name)
                return worker is not None and worker.rank != rank and not worker.status.progress.job_id

            wait_until(is_idle, WAIT_S, f"{name} is back, and has dropped the job")
            check(client, job, seed, tmp_path)
            results = tmp_path / "fleet" / "state" / "results"
            wait_until(lambda j=job_id, r=results: files(r, j) == ["0.npy"], WAIT_S, "only the accepted file is left")


def test_a_controller_that_comes_back_with_another_result_url(tmp_path: Path) -> None:
    """A decoder has the job: it stores where results go now, and nothing fails."""
    before, after = tmp_path / "before", tmp_path / "after"
    settings = {"controller_flags": ("--result-url", f"file://{before}")}
    with slow_decoders(tmp_path / "fleet", 1, **settings) as fleet, fleet.client() as client:
        job_id = client.submit(request(1)).job_id
        wait_state(client, job_id, JOB_STATE_DECODING)
        fleet.kill("controller")
        fleet.controller_flags = ("--result-url", f"file://{after}")
        fleet.start("controller")
        job = wait_over(client, [job_id], WAIT_S)[job_id]
        check(client, job, 1, tmp_path)
        assert list(job.attempts) == []
        assert files(after, job_id) == ["0.npy"]
        assert str(tmp_path) not in str(job), "no path of the server's is shown"


def test_a_state_folder_that_was_moved_or_copied(tmp_path: Path) -> None:
    with fake_fleet(tmp_path / "fleet", 0.1) as fleet, fleet.client() as client:
        job_id = client.submit(request(1)).job_id
        check(client, wait_over(client, [job_id], 60)[job_id], 1, tmp_path)
    shutil.copytree(tmp_path / "fleet" / "state", tmp_path / "other" / "state")
    shutil.rmtree(tmp_path / "fleet")
    nobody = dict.fromkeys(("encoder", "transformer", "decoder"), 0)
    with fake_fleet(tmp_path / "other", 0.1, counts=nobody) as fleet, fleet.client() as client:
        check(client, client.get_job(job_id), 1, tmp_path)
