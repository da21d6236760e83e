"""Streams through Envoy whose controller is killed: the client goes on where they ended."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.failures.loads import check, fake_fleet, request
from tests.fleet.held import WAIT_S
from tests.fleet.processes import eventually
from tests.mesh.proxy import envoy
from tests.slow_line import slow_line
from triptych import rpc
from triptych.errors import Unavailable
from triptych.v1.generation_service_pb2 import WatchJobRequest
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import JOB_STATE_DENOISING, JOB_STATE_SUCCEEDED, Job
from triptych_client import AsyncClient, RetryPolicy

PATIENT = RetryPolicy(total_s_max=WAIT_S)
LARGE = {"height": 1600, "width": 1600}
"""7.7 MB: more than all buffers between a controller and its client hold."""
LINE_BYTES_PER_S = 4e6


async def drain(stream: Any) -> None:
    """Read to the end, by the way of reading that has begun."""
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_watch_goes_on_when_its_controller_is_killed(tmp_path: Path) -> None:
    with fake_fleet(tmp_path / "fleet", 8.0) as fleet, envoy(tmp_path / "proxy", [fleet.endpoint]) as proxy:
        async with AsyncClient(proxy.address, PATIENT) as client, rpc.open_channel(proxy.address) as channel:
            job: Job = await client.submit(request(1))
            plain = GenerationServiceStub(channel).WatchJob(WatchJobRequest(job_id=job.job_id))
            await plain.read()
            killed = False
            steps = []
            async for update in client.watch_job(job.job_id, WAIT_S):
                job = update.job
                steps.append(job.step)
                if job.state == JOB_STATE_DENOISING and job.step >= 2 and not killed:
                    await asyncio.to_thread(fleet.kill, "controller")
                    with pytest.raises(grpc.aio.AioRpcError) as cut:
                        await drain(plain)
                    assert isinstance(rpc.error_from(cut.value), Unavailable), cut.value
                    threading.Thread(target=fleet.start, args=("controller",)).start()
                    killed = True
        assert killed
        assert job.state == JOB_STATE_SUCCEEDED, job.error
        told = [step for step in steps if step]  # a controller that has just started knows of none
        assert told == sorted(told), "nothing goes backwards"
        with fleet.client() as direct:
            check(direct, job, 1, tmp_path)


async def test_a_download_goes_on_when_its_controller_is_killed(tmp_path: Path) -> None:
    with fake_fleet(tmp_path / "fleet", 0.3) as fleet, envoy(tmp_path / "proxy", [fleet.endpoint]) as proxy:
        async with slow_line(proxy.address, LINE_BYTES_PER_S) as line, AsyncClient(line.address, PATIENT) as client:
            job = await client.submit(request(1, **LARGE))
            async for update in client.watch_job(job.job_id, WAIT_S):
                job = update.job
            (artifact,) = job.artifacts
            before = line.down_bytes
            download = asyncio.create_task(client.download_result(job.job_id, tmp_path / "out.npy"))
            await eventually(lambda: line.down_bytes - before > artifact.size_bytes // 4)
            await asyncio.to_thread(fleet.kill, "controller")
            await asyncio.to_thread(fleet.start, "controller")
            path = await asyncio.wait_for(download, WAIT_S)
            assert hashlib.sha256(path.read_bytes()).digest() == artifact.sha256
            assert line.down_bytes - before < 1.5 * artifact.size_bytes, "what had come isn't sent again"
