"""Full disks: what can't be written is refused or tried again, what was accepted isn't lost, and nobody dies of it."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest

from tests.failures.disks import small_disk
from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.held import reasons, worker_named
from tests.fleet.processes import DEATH_TIMEOUT_S, Fleet, wait_until
from triptych.errors import JournalFull
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import JOB_STATE_DECODING, JOB_STATE_DENOISING, JOB_STATE_FAILED
from triptych_client import Client
from triptych_client.retry import RetryPolicy

IMPATIENT = RetryPolicy(total_s_max=5.0)
CREATES_MAX = 3000
"""SQLite writes into space that it has already, before it needs more."""


def test_a_full_disk_of_results(tmp_path: Path) -> None:
    """The decoder keeps what it has made until there is space: nobody's work is done twice, and no attempt is lost."""
    with small_disk(tmp_path / "disk", 2**20) as disk:
        results = disk.path / "results"
        flags = ("--result-url", f"file://{results}")
        with fake_fleet(tmp_path / "fleet", 0.2, controller_flags=flags) as fleet, fleet.client() as client:
            disk.fill()
            job_id = client.submit(request(1)).job_id
            wait_until(lambda: "waits for space" in fleet.log("decoder-0"), 60, "the decoder has met the full disk")
            assert client.get_job(job_id).state == JOB_STATE_DECODING
            assert files(results) == [], "nothing half-written is left"
            disk.free()
            job = wait_over(client, [job_id], 60)[job_id]
            check(client, job, 1, tmp_path)
            assert (list(job.attempts), job.generation) == ([], 0)


def test_results_that_cannot_be_stored(tmp_path: Path) -> None:
    """For another reason than space, which would not pass by itself: a dead letter, and a retry when it is repaired."""
    results = tmp_path / "results"
    flags = ("--attempts-max", "3", "--result-url", f"file://{results}")
    with fake_fleet(tmp_path / "fleet", 0.1, controller_flags=flags) as fleet, fleet.client() as client:
        results.rmdir()
        results.write_text("a file where the folder should be")
        job_id = client.submit(request(2)).job_id
        dead = wait_over(client, [job_id], 60)[job_id]
        assert (dead.state, dead.dead_letter) == (JOB_STATE_FAILED, True)
        assert [role for role, _, _ in reasons(dead)] == ["decoder"] * 3
        assert all("Error" in reason for _, _, reason in reasons(dead))
        results.unlink()
        again = client.retry_job(job_id).job_id
        check(client, wait_over(client, [again], 60)[again], 2, tmp_path)
        assert [path.parent.parent.name for path in files(results)] == [again]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_full_disk_of_the_journal(tmp_path: Path) -> None:
    """It fills while jobs are under way, a worker is taken for dead and comes back meanwhile; then there is space."""
    with small_disk(tmp_path / "disk", 6 * 2**20) as disk:
        flags = ("--state", str(disk.path / "state"), "--result-url", f"file://{tmp_path / 'results'}")
        counts = {"transformer": 2}
        with (
            fake_fleet(
                tmp_path / "fleet", 2.0, counts=counts, controller_flags=flags, worker_timeout_s=DEATH_TIMEOUT_S
            ) as fleet,
            fleet.client() as client,
        ):
            pids = {name: process.pid for name, process in fleet.processes.items()}
            ids = [client.submit(request(seed)).job_id for seed in range(4)]
            wait_until(lambda: denoising(client, ids), 60, "two jobs are being denoised")
            before = worker_named(fleet, client, "transformer-1")
            assert before is not None
            disk.fill()
            ids += fill_journal(fleet, len(ids))
            look_while_full(fleet, client, ids)
            fleet.processes["transformer-1"].send_signal(signal.SIGSTOP)
            wait_until(lambda: worker_named(fleet, client, "transformer-1") is None, 60, "it is declared dead")
            fleet.processes["transformer-1"].send_signal(signal.SIGCONT)
            wait_until(lambda: "can't be written now" in fleet.log("transformer-1"), 60, "it can't register")
            disk.free()
            assert finish(client, ids, tmp_path) <= 1, "only the stopped worker's job was tried again"
            wait_until(lambda: worker_named(fleet, client, "transformer-1") is not None, 60, "it is back")
            after = worker_named(fleet, client, "transformer-1")
            assert after is not None
            assert after.rank > before.rank, "a rank that was declared dead is never given again"
            last = client.submit(request(77, transformer_rank=after.rank)).job_id
            check(client, wait_over(client, [last], 60)[last], 77, tmp_path, transformer_rank=after.rank)
            assert len(list(client.list_jobs())) == len(ids) + 1, "what was refused isn't there"
            assert pids == {name: process.pid for name, process in fleet.processes.items() if process.poll() is None}


def test_a_controller_that_starts_on_a_full_disk(tmp_path: Path) -> None:
    """It ends at once and says why; with space again its next start has everything."""
    with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
        flags = ("--state", str(disk.path / "state"), "--result-url", f"file://{tmp_path / 'results'}")
        with fake_fleet(tmp_path / "fleet", 0.5, controller_flags=flags) as fleet, fleet.client() as client:
            ids = [client.submit(request(seed)).job_id for seed in range(6)]
            disk.fill()
            fleet.kill("controller")
            fleet.spawn("controller")
            assert fleet.processes["controller"].wait(60) != 0
            assert "full" in fleet.log("controller").splitlines()[-1]
            disk.free()
            fleet.start("controller")
            finish(client, ids, tmp_path)


def denoising(client: Client, ids: list[str]) -> bool:
    return sum(client.get_job(job_id).state == JOB_STATE_DENOISING for job_id in ids) == 2


def fill_journal(fleet: Fleet, first_seed: int) -> list[str]:
    """Create jobs until one is refused; those that were accepted."""
    accepted = []
    with Client(fleet.endpoint, IMPATIENT) as hasty:
        for seed in range(first_seed, first_seed + CREATES_MAX):
            try:
                accepted.append(hasty.submit(request(seed)).job_id)
            except JournalFull:
                print(f"{len(accepted)} jobs were accepted after the disk was full")
                return accepted
    raise AssertionError("the journal took everything")


def look_while_full(fleet: Fleet, client: Client, ids: list[str]) -> None:
    """Reads go on, changes are refused with a hint."""
    assert client.get_job(ids[0]).job_id == ids[0]
    assert len(list(client.list_jobs())) == len(ids)
    with grpc.insecure_channel(fleet.endpoint) as channel:
        stub = GenerationServiceStub(channel)
        calls = (
            (stub.CreateJob, pb.CreateJobRequest(request=request(0))),
            (stub.CancelJob, pb.CancelJobRequest(job_id=ids[-1])),
        )
        for call, message in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call(message, timeout=10)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert next(iter(stub.WatchJob(pb.WatchJobRequest(job_id=ids[-1]), timeout=10))).job.job_id == ids[-1]


def finish(client: Client, ids: list[str], folder: Path) -> int:
    """Every job must succeed with its bits; how many attempts were undone in all."""
    jobs = wait_over(client, ids, 120)
    for seed, job_id in enumerate(ids):
        check(client, jobs[job_id], seed, folder)
    return sum(len(job.attempts) for job in jobs.values())
