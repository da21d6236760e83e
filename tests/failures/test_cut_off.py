"""Workers whose connection to the controller breaks, and jobs that are addressed to one that is gone."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.failures.proxy import Proxy
from tests.fleet.held import WAIT_S, name_of, reasons, wait_state, worker_named
from tests.fleet.processes import DEATH_TIMEOUT_S, Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DENOISING, JOB_STATE_ENCODING, JOB_STATE_QUEUED, JOB_STATE_SUCCEEDED, Job
from triptych_client import Client

SLOW = {"encoder-0": ("--fake-stage-seconds", "30")}
"""Three seconds for a job: long enough to do something before the next is encoded."""


class ProxiedFleet(Fleet):
    """A fleet whose transformer-0 reaches the controller by a proxy."""

    proxy: Proxy

    def wait_ready(self, name: str) -> None:
        super().wait_ready(name)
        if name == "controller":
            self.proxy = Proxy(self.endpoint).__enter__()
            self.flags_by_name = {"transformer-0": ("--controller", self.proxy.address)}


def proxied(folder: Path, seconds: float, transformers: int, **settings: Any) -> ProxiedFleet:
    flags = ("--fake-stage-seconds", str(seconds), "--mover", "local", "--rings", "rpc")
    return ProxiedFleet(folder, "", counts={"transformer": transformers}, worker_flags=flags, **settings)


def test_a_short_cut_costs_nothing(tmp_path: Path) -> None:
    """The worker goes on meanwhile, and finishes under the lease that it had."""
    with proxied(tmp_path / "fleet", 8.0, 1) as fleet, fleet.client() as client:
        job_id = client.submit(request(1)).job_id
        job = wait_state(client, job_id, JOB_STATE_DENOISING, step=2)
        fleet.proxy.cut()
        wait_until(lambda: "registering again" in fleet.log("transformer-0"), WAIT_S, "the worker has noticed")
        fleet.proxy.mend()
        after = wait_over(client, [job_id], WAIT_S)[job_id]
        check(client, after, 1, tmp_path)
        assert (list(after.attempts), after.generation) == ([], 0)
        assert after.transformer_rank == job.transformer_rank


def test_a_long_cut_is_a_death_and_the_worker_is_told_later(tmp_path: Path) -> None:
    """Another has its job by then; what it made itself counts for nothing and is dropped, and it works again."""
    with proxied(tmp_path / "fleet", 8.0, 2, worker_timeout_s=DEATH_TIMEOUT_S) as fleet, fleet.client() as client:
        ids = [client.submit(request(seed)).job_id for seed in range(2)]
        jobs = at_work(client, ids)
        cut_off = worker_named(fleet, client, "transformer-0")
        assert cut_off is not None
        fleet.proxy.cut()
        wait_until(lambda: worker_named(fleet, client, "transformer-0") is None, WAIT_S, "it is declared dead")
        done = wait_over(client, ids, WAIT_S)
        for seed, (job, job_id) in enumerate(zip(jobs, ids, strict=True)):
            check(client, done[job_id], seed, tmp_path)
            expected = [("transformer", cut_off.rank, f"rank {cut_off.rank} was silent for {DEATH_TIMEOUT_S:g} s")]
            assert reasons(done[job_id]) == (expected if job.transformer_rank == cut_off.rank else [])
        fleet.proxy.mend()
        wait_until(lambda: worker_named(fleet, client, "transformer-0") is not None, WAIT_S, "it is back")
        back = worker_named(fleet, client, "transformer-0")
        assert back is not None
        assert back.rank > cut_off.rank
        again = client.submit(request(5, transformer_rank=back.rank)).job_id
        check(client, wait_over(client, [again], WAIT_S)[again], 5, tmp_path, transformer_rank=back.rank)
        wait_until(lambda: all(w.status.room_count == 0 for w in client.get_fleet().workers), WAIT_S, "no room is left")


def test_a_controller_that_stood_still_takes_nobody_for_dead(tmp_path: Path) -> None:
    """It heard nobody for longer than the worker timeout, and that was its own doing."""
    with fake_fleet(tmp_path / "fleet", 15.0, worker_timeout_s=DEATH_TIMEOUT_S) as fleet, fleet.client() as client:
        job_id = client.submit(request(1)).job_id
        wait_state(client, job_id, JOB_STATE_DENOISING)
        before = {worker.rank for worker in client.get_fleet().workers}
        fleet.processes["controller"].send_signal(signal.SIGSTOP)
        time.sleep(1.5 * DEATH_TIMEOUT_S)  # the fault itself
        fleet.processes["controller"].send_signal(signal.SIGCONT)
        done = wait_over(client, [job_id], WAIT_S)[job_id]
        check(client, done, 1, tmp_path)
        assert list(done.attempts) == []
        assert {worker.rank for worker in client.get_fleet().workers} == before
        assert "the controller stood still" in fleet.log("controller")


def at_work(client: Client, job_ids: list[str]) -> list[Job]:
    """The jobs as soon as all are denoised at the same time."""
    found: list[Job] = []

    def are_denoised() -> bool:
        found[:] = map(client.get_job, job_ids)
        return all(job.state == JOB_STATE_DENOISING for job in found)

    wait_until(are_denoised, WAIT_S, "all are denoised")
    return found


@pytest.mark.parametrize("with_controller", [False, True], ids=["alone", "with the controller"])
def test_jobs_for_a_rank_that_died_go_to_anyone(tmp_path: Path, with_controller: bool) -> None:
    """Also where the controller dies with it, so that nobody who knew of the rank is left."""
    with (
        fake_fleet(
            tmp_path / "fleet", 3.0, counts={"transformer": 2}, flags_by_name=SLOW, worker_timeout_s=DEATH_TIMEOUT_S
        ) as fleet,
        fleet.client() as client,
    ):
        first = client.submit(request(0)).job_id
        rank = wait_state(client, first, JOB_STATE_DENOISING).transformer_rank
        name = name_of(fleet, client, rank)
        ids = [first, *(client.submit(request(seed, transformer_rank=rank)).job_id for seed in range(1, 4))]
        assert client.get_job(ids[-1]).state == JOB_STATE_QUEUED, "some aren't even encoded"
        if with_controller:
            fleet.kill("controller")
        fleet.kill(name)
        if with_controller:
            fleet.start("controller")
        done = wait_over(client, ids, WAIT_S)
        for seed, job_id in enumerate(ids):
            assert done[job_id].state == JOB_STATE_SUCCEEDED
            check(client, done[job_id], seed, tmp_path)
            assert done[job_id].transformer_rank != rank
        assert sum(len(job.attempts) for job in done.values()) <= 1, "only what it was denoising was begun again"


def test_jobs_for_a_rank_that_nobody_remembers_go_to_anyone(tmp_path: Path) -> None:
    """It was idle when it died with the controller, so no job but these names it, and they aren't encoded yet."""
    with (
        fake_fleet(
            tmp_path / "fleet", 0.2, counts={"transformer": 2}, flags_by_name=SLOW, worker_timeout_s=DEATH_TIMEOUT_S
        ) as fleet,
        fleet.client() as client,
    ):
        dead = worker_named(fleet, client, "transformer-1")
        assert dead is not None
        ids = [client.submit(request(seed, transformer_rank=dead.rank)).job_id for seed in range(2)]
        wait_state(client, ids[0], JOB_STATE_ENCODING)
        fleet.kill("controller")
        fleet.kill("transformer-1")
        fleet.start("controller")
        done = wait_over(client, ids, WAIT_S)
        for seed, job_id in enumerate(ids):
            check(client, done[job_id], seed, tmp_path)
            assert (done[job_id].attempts, done[job_id].transformer_rank != dead.rank) == ([], True)


def test_a_client_that_waits(tmp_path: Path) -> None:
    """The Python client watches through a cut of its own."""
    with fake_fleet(tmp_path / "fleet", 2.0) as fleet, Proxy(fleet.endpoint) as proxy, Client(proxy.address) as client:
        job_id = client.submit(request(1)).job_id
        steps, is_cut = [], False
        for update in client.watch_job(job_id):
            if update.job.step >= 2 and not is_cut:
                proxy.cut()
                proxy.mend()
                is_cut = True
            steps.append(update.job.step)
        assert is_cut
        assert steps == sorted(steps)
        check(client, update.job, 1, tmp_path)
