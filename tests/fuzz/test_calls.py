"""A live fleet under hostile calls: no INTERNAL, no process dies or grows, and a normal job works right after.

`TRIPTYCH_FUZZ_CALLS` makes it more calls than the share that a change's tests run.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.e2e.conftest import SMALL, channel_to, generate
from tests.fleet.processes import Fleet, wait_until
from tests.fuzz.calls import Caller, Outcomes, discover
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER
from triptych.v1.worker_service_pb2 import DrainRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub
from triptych_client import Client

COUNT = int(os.environ.get("TRIPTYCH_FUZZ_CALLS", "5000"))
SEED = int(os.environ.get("TRIPTYCH_FUZZ_SEED", "1"))
GROWTH_BYTES_MAX = 256 * 2**20
"""What a process may take more after all calls than after the first: jobs are remembered, and libraries cache."""
RECOVERY_TIMEOUT_S = 120.0
"""Bogus workers time out, real ones register, what waits is given up."""
FIELDS = {**SMALL, "num_frames": 5}
FAR_ACTIVE = 1000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[Fleet]:
    """A fleet of its own: other tests would not want it back."""
    with Fleet(tmp_path_factory.mktemp("fleet"), model_folder("wan_t2v")) as started:
        yield started


def resident_bytes(fleet: Fleet) -> dict[str, int]:
    """Memory of each process."""
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        name: int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page
        for name, process in fleet.processes.items()
        if process.poll() is None
    }


def hammer(fleet: Fleet, count: int, seed: int) -> Outcomes:
    """Hostile calls to every process."""
    methods = discover(fleet.addresses)
    return asyncio.run(Caller(fleet.addresses, methods, random.Random(seed)).run(count))


def settle(fleet: Fleet, client: Client) -> None:
    """Give up what hostile calls have left to do, and wait until the real workers are members again."""

    def is_whole() -> bool:
        for job in client.list_jobs():
            if job.job_id and not job.HasField("end_time"):
                client.cancel_job(job.job_id)
        addresses = {(worker.info.role, worker.info.address) for worker in client.get_fleet().workers}
        roles = {"encoder-0": ROLE_ENCODER, "transformer-0": ROLE_TRANSFORMER, "decoder-0": ROLE_DECODER}
        return addresses == {(role, fleet.addresses[name]) for name, role in roles.items()}

    wait_until(is_whole, RECOVERY_TIMEOUT_S, "the real workers, and no others, are members")


@pytest.mark.timeout(3600)
def test_hostile_calls(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.client() as client:
        before = generate(client, tmp_path, num_frames=5)
        first = hammer(fleet, COUNT // 5, SEED)
        warm_bytes = resident_bytes(fleet)
        started_s = time.monotonic()
        rest = hammer(fleet, COUNT - COUNT // 5, SEED + 1)
        seconds = time.monotonic() - started_s
        after_bytes = resident_bytes(fleet)
        print(f"\n{COUNT} calls, the last {COUNT - COUNT // 5} in {seconds:.0f} s: {first.statuses + rest.statuses}")
        grown = {name: (after_bytes.get(name, 0) - warm) >> 20 for name, warm in warm_bytes.items()}
        print(f"grown by MiB: {grown}")
        assert {name: p.poll() for name, p in fleet.processes.items() if p.poll() is not None} == {}, logs(fleet)
        assert sorted(set(first.bugs + rest.bugs))[:20] == [], logs(fleet)
        assert [name for name, mib in grown.items() if mib << 20 > GROWTH_BYTES_MAX] == []
        settle(fleet, client)
        assert np.array_equal(generate(client, tmp_path, num_frames=5), before)


def logs(fleet: Fleet) -> str:
    """Errors in the logs, for people."""
    lines = [
        line
        for name in fleet.processes
        for line in fleet.log(name).splitlines()
        if "Traceback" in line or "ERROR" in line
    ]
    return "\n".join(lines[-30:])


def test_draining_ends_a_worker_properly(fleet: Fleet) -> None:
    """The call that the others left out; with bytes that are no message first."""
    for name in ("encoder-0", "transformer-0", "decoder-0"):
        with channel_to(fleet, name) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/triptych.v1.WorkerService/Drain")(b"\xff", timeout=10)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert fleet.processes[name].poll() is None
            WorkerServiceStub(channel).Drain(DrainRequest(), timeout=10)
    for name in ("encoder-0", "transformer-0", "decoder-0"):
        assert fleet.processes[name].wait(60) == 0
