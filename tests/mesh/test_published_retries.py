"""The service config of docs/ through Envoy: it is all that callers need while a standby takes over."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.fleet.processes import eventually
from tests.mesh.proxy import Proxy, envoy
from tests.standby.pair import LEASE_S, Pair
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, GenerationRequest, Job

FAKE = ("--fake-stage-seconds", "0.05")
SERVICE_CONFIG = Path(__file__).parents[2] / "docs/service_config.json"
PAUSE_S = 0.02
"""Between two calls of a caller."""
CREATE_PAUSE_S = 0.2
"""The same where it creates jobs: they have to be generated, too."""
CALLERS = 4
"""Of each other method."""
CALL_S_MAX = 60.0
JOBS_TIMEOUT_S = 180.0


class Load:
    """Callers of some methods, with the published service config and nothing else, for the length of a block."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            endpoint, options=[("grpc.service_config", SERVICE_CONFIG.read_text())]
        )
        self._stub = GenerationServiceStub(self._channel)
        self._is_over = False
        self.calls: Counter[str] = Counter()
        self.failures: list[str] = []
        self.created: dict[str, str] = {}
        """Jobs' ids by request id."""

    async def __aenter__(self) -> Load:
        await self._create()  # there is a job to ask for
        reads = (self._get, self._list, self._describe) * CALLERS
        repeated = [self._repeat(self._create, CREATE_PAUSE_S), *(self._repeat(call, PAUSE_S) for call in reads)]
        self._callers = [asyncio.create_task(calls) for calls in repeated]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._channel.close()

    async def stop(self) -> None:
        """Let the calls under way end, and make no others."""
        self._is_over = True
        await asyncio.gather(*self._callers)

    async def jobs(self) -> list[Job]:
        """All jobs of the fleet, once all are over."""
        async with asyncio.timeout(JOBS_TIMEOUT_S):
            while True:
                jobs = (await self._stub.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=CALL_S_MAX)).jobs
                if all(job.HasField("end_time") for job in jobs):
                    return list(jobs)
                await asyncio.sleep(PAUSE_S)

    async def _repeat(self, call: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while not self._is_over:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{call.__name__}: {error.code().name} {error.details()}")
            self.calls[call.__name__] += 1
            await asyncio.sleep(pause_s)

    async def _create(self) -> None:
        request_id = uuid.uuid4().hex
        request = GenerationRequest(prompt=f"job {len(self.created)}", seed=1)
        asked = pb.CreateJobRequest(request_id=request_id, request=request)
        self.created[request_id] = (await self._stub.CreateJob(asked, timeout=CALL_S_MAX)).job.job_id

    async def _get(self) -> None:
        job_id = next(iter(self.created.values()))
        await self._stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=CALL_S_MAX)

    async def _list(self) -> None:
        await self._stub.ListJobs(pb.ListJobsRequest(page_size=5), timeout=CALL_S_MAX)

    async def _describe(self) -> None:
        await self._stub.DescribeModel(pb.DescribeModelRequest(), timeout=CALL_S_MAX)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("pair"), (), FAKE, has_workers=True) as started:
        yield started


@pytest.fixture(scope="module")
def edge(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with envoy(tmp_path_factory.mktemp("edge") / "envoy", pair.endpoint.split(",")) as started:
        yield started


async def test_no_request_fails_when_the_active_one_is_killed_under_load(pair: Pair, edge: Proxy) -> None:
    async with Load(edge.address) as load:
        await eventually(lambda: len(load.created) > 5)
        taken_over_s = await asyncio.to_thread(pair.taken_over_s, pair.kill)
        before = load.calls.copy()
        await eventually(lambda: all(load.calls[name] > count + 5 for name, count in before.items()))
        await load.stop()
        jobs = await load.jobs()
    print(f"{load.calls.total()} calls; taken over after {taken_over_s / LEASE_S:.2f} times the lease")
    assert load.failures == []
    assert {job.request_id: job.job_id for job in jobs} == load.created
    assert len(jobs) == len(load.created), "none is there twice"
    assert {job.state for job in jobs} == {JOB_STATE_SUCCEEDED}
