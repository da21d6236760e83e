"""Time-outs grow with what is sent: a slow line is no broken one, and no try sends what has come already."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.clients.conftest import QUICK
from tests.clients.test_client import names
from tests.clients.toy_controller import ToyController
from tests.fleet.processes import free_port
from tests.slow_line import slow_line
from triptych import rpc
from triptych.errors import DeadlinePassed, InvalidRequest, Unreachable
from triptych_client import AsyncClient, RetryPolicy
from triptych_client.fleet_plan import START_TIMEOUT_S, FleetPlan

PICTURE_BYTES = 400_000
LINE_BYTES_PER_S = 200_000
"""So the picture takes 2 s."""
SHORT = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.1, total_s_max=1.0, attempt_s_max=0.5, bytes_per_s_min=20_000)
"""Of its own, too little for the picture; with what its bytes add, 20 s."""
BOUND_S = 120.0


async def test_a_large_request_over_a_slow_line_is_sent_once(server: rpc.Server, controller: ToyController) -> None:
    async with slow_line(server.address, LINE_BYTES_PER_S) as line, AsyncClient(line.address, SHORT) as client:
        async with asyncio.timeout(BOUND_S):
            job = await client.create_job("a circle", media={"image": b"x" * PICTURE_BYTES})
    assert (job.job_id, controller.create_count) == ("job-0", 1)
    assert line.up_bytes < 1.5 * PICTURE_BYTES, "no try began anew"


async def test_a_line_that_is_too_slow_is_told_with_its_figures(server: rpc.Server) -> None:
    policy = RetryPolicy(total_s_max=1.0, attempt_s_max=0.5, bytes_per_s_min=1_000_000)
    async with slow_line(server.address, 20_000) as line, AsyncClient(line.address, policy) as client:
        with pytest.raises(DeadlinePassed, match=r"within 1 s, the time for 391 KiB at 977 KiB a second") as caught:
            async with asyncio.timeout(BOUND_S):
                await client.create_job("a circle", media={"image": b"x" * PICTURE_BYTES})
    assert line.address in str(caught.value)
    assert line.up_bytes < PICTURE_BYTES, "what didn't fit once isn't sent again"


async def test_a_slow_download_ends(server: rpc.Server, controller: ToyController, tmp_path: Path) -> None:
    controller.content = b"f" * PICTURE_BYTES
    async with AsyncClient(server.address, QUICK) as client:
        job = (await client.generate("a circle", tmp_path / "first.mp4")).job
    async with slow_line(server.address, LINE_BYTES_PER_S) as line, AsyncClient(line.address, SHORT) as client:
        async with asyncio.timeout(BOUND_S):
            path = await client.download_result(job.job_id, tmp_path / "out.mp4")
    assert path.read_bytes() == controller.content
    assert line.down_bytes < 1.5 * PICTURE_BYTES


@pytest.mark.parametrize("knows_offsets", [True, False])
async def test_a_download_that_breaks_goes_on_where_it_was(
    server: rpc.Server, controller: ToyController, tmp_path: Path, knows_offsets: bool
) -> None:
    """An older controller sends all of it again, and the file is right, too."""
    controller.content = np.arange(10 * 2**18, dtype=np.uint32).tobytes()  # no piece of it is like another
    controller.knows_offsets = knows_offsets
    size_bytes = len(controller.content)
    async with AsyncClient(server.address, QUICK) as client:
        job = (await client.generate("a circle", tmp_path / "first.mp4")).job
    async with slow_line(server.address, 1e9) as line, AsyncClient(line.address, QUICK) as client:
        line.breaks_after = size_bytes * 3 // 4
        async with asyncio.timeout(BOUND_S):
            path = await client.download_result(job.job_id, tmp_path / "out.mp4")
    assert path.read_bytes() == controller.content
    assert line.connections == 2
    assert (line.down_bytes < 1.5 * size_bytes) is knows_offsets
    assert names(tmp_path) == ["first.mp4", "out.mp4"]


async def test_an_absent_server_is_given_up_before_a_slow_one() -> None:
    policy = RetryPolicy(total_s_max=1e6, absent_s_max=0.2)
    async with AsyncClient(f"127.0.0.1:{free_port()}", policy) as client, asyncio.timeout(BOUND_S):
        with pytest.raises(Unreachable, match=r"no answer from 127\.0\.0\.1:\d+ \(connection refused\)"):
            await client.get_fleet()


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InvalidRequest, match="bytes_per_s_min is "):
        RetryPolicy(bytes_per_s_min=rate)


def test_a_start_has_the_longer_the_more_there_is_to_read(tmp_path: Path) -> None:
    """100 GB from a shared disk take longer than any fixed bound; and a model of the hub has to come first."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(100 * 10**9)  # takes no space
    plan = FleetPlan(str(tmp_path), tmp_path / "state")
    assert plan.start_timeout_s == START_TIMEOUT_S + 5000
    assert FleetPlan("owner/name", tmp_path / "state").start_timeout_s >= 86_400
