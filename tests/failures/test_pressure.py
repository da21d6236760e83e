"""More than a fleet can do: bounds that refuse with a hint, memory that stays bounded, and a small client's turn."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from services.controller.generation_service import WATCH_SHARES
from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.processes import Fleet, wait_until
from triptych.environment import ClientAccess
from triptych.errors import BacklogFull, WatchesFull
from triptych.security import tokens
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job
from triptych.v1.worker_pb2 import WORKER_STATE_FULL
from triptych_client import Client
from triptych_client.retry import RetryPolicy

BACKLOG = 5_000
JOB_SECONDS = 0.2
WATCHES_MAX = 4
JOB_BYTES_MAX = 8 * 2**10
"""Most memory of the controller for a job that waits; 2.6 KiB were measured."""
TURN_JOBS_MAX = 12
"""Jobs of others that end before a late client's one job does: what the rings hold already, and no more."""
LEAVE_AT_ONCE = ("--drain-timeout-s", "0", "--release-timeout-s", "0")
"""There is a backlog that nobody will work off."""
IN_SMALL_MEMORY = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=96k tmpfs /dev/shm && exec "$0" "$@"')
IMPATIENT = RetryPolicy(total_s_max=1.5)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.toml"


@pytest.fixture(scope="module")
def access(token_file: Path) -> dict[str, ClientAccess]:
    """Two clients, an administrator and the workers."""
    scopes = {"big": ["submit", "read"], "small": ["submit", "read"], "root": ["admin"]}
    made = {name: ClientAccess(token=tokens.add(token_file, name, granted)) for name, granted in scopes.items()}
    token_file.with_name("worker").write_text(tokens.add(token_file, "worker", ["encoder", "transformer", "decoder"]))
    token_file.with_name("worker").chmod(0o600)
    return made


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, token_file: Path, access: dict[str, ClientAccess]
) -> Iterator[Fleet]:
    """One of each, for clients with tokens, with low bounds."""
    bounds = ("--backlog-jobs-max", str(BACKLOG + 5), "--watches-max", str(WATCHES_MAX))
    with fake_fleet(
        tmp_path_factory.mktemp("pressure"),
        JOB_SECONDS,
        controller_flags=("--tokens", str(token_file), *bounds),
        worker_flags=("--token-file", str(token_file.with_name("worker")), *LEAVE_AT_ONCE),
        access=access["root"],
    ) as started:
        yield started


def test_too_many_watches_are_refused_with_a_hint(fleet: Fleet, access: dict[str, ClientAccess]) -> None:
    with fleet.client() as client, ExitStack() as stack:
        fleet.processes["transformer-0"].send_signal(signal.SIGSTOP)  # so that the job goes on
        stack.callback(fleet.processes["transformer-0"].send_signal, signal.SIGCONT)
        job_id = client.submit(request(1)).job_id
        metadata = (("authorization", f"Bearer {access['root'].token}"),)
        channel = stack.enter_context(grpc.insecure_channel(fleet.endpoint))
        stub = GenerationServiceStub(channel)
        message = pb.WatchJobRequest(job_id=job_id)
        watches = [stub.WatchJob(message, metadata=metadata) for _ in range(WATCHES_MAX // WATCH_SHARES)]
        for watch in watches:
            next(iter(watch))
        with pytest.raises(grpc.RpcError) as refused:
            next(iter(stub.WatchJob(message, metadata=metadata)))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "2000"
        with Client(fleet.endpoint, IMPATIENT, access["root"]) as hasty, pytest.raises(WatchesFull):
            list(hasty.watch_job(job_id))
        with Client(fleet.endpoint, IMPATIENT, access["small"]) as other:
            own = other.submit(request(2)).job_id
            assert next(iter(other.watch_job(own))).job.job_id == own, "nobody alone shuts the others out"
        watches[0].cancel()
        fleet.processes["transformer-0"].send_signal(signal.SIGCONT)
        assert list(client.watch_job(job_id))[-1].job.state == JOB_STATE_SUCCEEDED, "the client has waited"
        for watch in watches:
            watch.cancel()


def test_a_backlog_is_bounded_in_number_and_memory_and_others_have_their_turn(
    fleet: Fleet, access: dict[str, ClientAccess], tmp_path: Path
) -> None:
    """5,000 jobs of one client wait; the controller is small, refuses the one too many, and serves somebody else."""
    process = psutil.Process(fleet.processes["controller"].pid)
    with (
        Client(fleet.endpoint, None, access["big"]) as big,
        Client(fleet.endpoint, None, access["small"]) as small,
        Client(fleet.endpoint, IMPATIENT, access["big"]) as hasty,
        fleet.client() as root,
    ):
        wait_over(small, [small.submit(request(1)).job_id], 60)
        before_bytes, started_s = process.memory_info().rss, time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            jobs = list(pool.map(lambda seed: big.submit(request(seed)), range(BACKLOG)))
        took_s = time.monotonic() - started_s
        each_bytes = (process.memory_info().rss - before_bytes) / BACKLOG
        print(
            f"{BACKLOG} jobs in {took_s:.1f} s ({BACKLOG / took_s:.0f}/s); {each_bytes / 1024:.1f} KiB of memory each"
        )
        assert each_bytes < JOB_BYTES_MAX

        late = small.submit(request(7)).job_id
        job = wait_over(small, [late], 60)[late]
        others = ended_meanwhile(root, job)
        took_ns = job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()
        print(f"a late client's job took {took_ns / 1e9:.2f} s; {others} others ended meanwhile")
        check(small, job, 7, tmp_path)
        assert others <= TURN_JOBS_MAX
        assert next(found.job_id for found in small.list_jobs()) == late

        refused = None
        for seed in range(BACKLOG):  # some end meanwhile
            try:
                hasty.submit(request(seed))
            except BacklogFull as error:
                refused = error
                break
        assert refused is not None
        assert refused.retry_after_s > 0
        urgent = big.submit(request(8, priority="high")).job_id
        assert wait_over(big, [urgent], 60)[urgent].state == JOB_STATE_SUCCEEDED
        assert big.get_job(jobs[-1].job_id).state < JOB_STATE_SUCCEEDED, "it came long before, and still waits"


def ended_meanwhile(client: Client, job: Job) -> int:
    """How many other jobs succeeded between a job's creation and its end, by the controller's clock."""
    begin_ns, end_ns = job.create_time.ToNanoseconds(), job.end_time.ToNanoseconds()
    ends_ns = [one.end_time.ToNanoseconds() for one in client.list_jobs(states=[JOB_STATE_SUCCEEDED])]
    return sum(begin_ns < one_ns < end_ns for one_ns in ends_ns)


def test_a_full_backlog_is_waited_out(tmp_path: Path) -> None:
    """Three times as many jobs as are kept: each client waits as it is told, and every job ends well."""
    flags = ("--backlog-jobs-max", "4")
    with fake_fleet(tmp_path / "fleet", 0.1, controller_flags=flags) as fleet, fleet.client() as client:
        with ThreadPoolExecutor(12) as pool:
            jobs = list(pool.map(lambda seed: client.submit(request(seed)), range(12)))
        done = wait_over(client, [job.job_id for job in jobs], 120)
        for seed, job in enumerate(jobs):
            check(client, done[job.job_id], seed, tmp_path)
            assert done[job.job_id].attempts == []


@pytest.mark.parametrize("where", ["arena", "shared memory"])
def test_no_space_for_rooms_is_waited_out(tmp_path: Path, where: str) -> None:
    """The encoder has space for one room at a time: in its arena, or in a `/dev/shm` smaller than its arena."""
    size, jobs_count = {"height": 64, "width": 64}, 6
    small = "encoder-0" if where == "shared memory" else ""
    if small and os.geteuid() != 0:
        pytest.skip("a /dev/shm of a test's own takes root, to mount it")
    sizes = {"encoder-0": ("--arena-bytes", str(2**16 if where == "arena" else 2**20))}
    with (
        Fleet(
            tmp_path / "fleet",
            "",
            worker_flags=("--fake-stage-seconds", "1"),
            flags_by_name=sizes,
            prefix=lambda name: IN_SMALL_MEMORY if name == small else (),
        ) as fleet,
        fleet.client() as client,
    ):
        ids = [client.submit(request(seed, **size)).job_id for seed in range(jobs_count)]
        wait_until(
            lambda: WORKER_STATE_FULL in [worker.status.state for worker in client.get_fleet().workers],
            60,
            "it says so",
        )
        done = wait_over(client, ids, 120)
        for seed, job_id in enumerate(ids):
            check(client, done[job_id], seed, tmp_path, **size)
            assert done[job_id].attempts == []
