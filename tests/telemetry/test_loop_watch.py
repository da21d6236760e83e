"""What holds an event loop is measured, named, and told."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest

from triptych import rpc
from triptych.telemetry.loop_watch import HOLD_MAX_S, Hold, WatchedLoop, watch_of
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc


def spin(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


class Slow(pb_grpc.WorkerServiceServicer):
    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        await asyncio.sleep(0)
        spin(HOLD_MAX_S * 1.2)
        return pb.GetWorkerResponse()


async def test_a_call_that_holds_the_loop_is_named() -> None:
    service = (pb_grpc.add_WorkerServiceServicer_to_server, Slow(), "triptych.v1.WorkerService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    async with rpc.open_channel(server.address) as channel:
        await pb_grpc.WorkerServiceStub(channel).GetWorker(pb.GetWorkerRequest(), timeout=30)
    await server.stop(0)
    watch = watch_of(asyncio.get_running_loop())
    held = [hold for hold in watch.too_long if hold.what.startswith("/triptych.v1.WorkerService/GetWorker")]
    watch.too_long.clear()
    assert len(held) == 1
    assert HOLD_MAX_S < held[0].cpu_s <= held[0].wall_s


@pytest.mark.parametrize("way", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_every_way_into_the_loop_is_measured(way: str) -> None:
    loop = WatchedLoop()
    try:
        arguments = (0.0, spin, 0.01) if way == "call_later" else (spin, 0.01)
        getattr(loop, way)(*arguments)
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
        assert loop.watch.longest.cpu_s >= 0.01
        assert loop.watch.longest.what == "spin"
        assert not loop.watch.too_long
    finally:
        loop.close()
    assert loop.watch.collected not in gc.callbacks


def test_waiting_is_no_work_and_starting_is_nobodys_loss(tmp_path: Path) -> None:
    async def work() -> None:
        watch = watch_of(asyncio.get_running_loop())
        watch.is_starting, watch.file = True, tmp_path / "holds"
        await asyncio.sleep(0)
        spin(HOLD_MAX_S * 1.2)
        await asyncio.sleep(0)
        assert watch.longest == Hold()
        watch.is_starting = False
        spin(HOLD_MAX_S * 1.4)
        await asyncio.sleep(0.2)
        assert watch.longest.cpu_s < 0.2
        assert "work" in watch.file.read_text()

    with asyncio.Runner(loop_factory=WatchedLoop) as runner:
        runner.run(work())
