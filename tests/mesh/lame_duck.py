"""Ends one of two controllers behind Envoy while calls come, and counts what callers see.

    .venv/bin/python -m tests.mesh.lame_duck

prints it for a controller that leaves first (`--lame-duck-s`) and for one that doesn't.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.failures.loads import request
from tests.fleet.processes import STOP_TIMEOUT_S, Fleet, eventually
from tests.mesh.proxy import Proxy, envoy
from triptych import rpc
from triptych.config import ControllerConfig
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub

CALLERS = 20
CALM_S = 2.0
"""Load before the signal, and after the process has ended."""
CREATE_SHARE = 0.02
"""Of calls that make a job. The encoders behind the controllers are fakes, and no transformer takes the jobs on."""
FLAGS = ("--fake-stage-seconds", "0.1", "--mover", "rpc")


@dataclass
class Seen:
    """What callers and the proxy saw."""

    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    """Of the proxy."""
    looked_away_s: float = 0.0
    """From the signal until the proxy sends the process nothing."""
    ended_s: float = 0.0
    """From the signal until the process has ended."""
    exit_code: int = -1


def measure(folder: Path, lame_duck_s: float) -> Seen:
    """End one of two controllers that leave for so long."""
    counts = {"transformer": 0, "decoder": 0}
    flags = ("--lame-duck-s", f"{lame_duck_s:g}")
    with (
        Fleet(folder / "a", "", counts=counts, worker_flags=FLAGS, controller_flags=flags) as a,
        Fleet(folder / "b", "", counts=counts, worker_flags=FLAGS, controller_flags=flags) as b,
        envoy(folder / "proxy", [a.endpoint, b.endpoint]) as proxy,
    ):
        return asyncio.run(_measured(proxy, a, {a.endpoint, b.endpoint}))


async def _measured(proxy: Proxy, ending: Fleet, both: set[str]) -> Seen:
    seen, over = Seen(), asyncio.Event()
    process = ending.processes["controller"]

    def healthy() -> set[str]:
        return proxy.healthy()

    async def until(condition: set[str]) -> None:
        while await asyncio.to_thread(healthy) != condition:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.02)

    async with asyncio.timeout(STOP_TIMEOUT_S), rpc.open_channel(proxy.address) as channel:
        await until(both)
        callers = [asyncio.create_task(_call(GenerationServiceStub(channel), seen, over)) for _ in range(CALLERS)]
        await asyncio.sleep(CALM_S)
        begin_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await until(both - {ending.endpoint})
        seen.looked_away_s = time.monotonic() - begin_s
        await eventually(lambda: process.poll() is not None)
        seen.ended_s, seen.exit_code = time.monotonic() - begin_s, process.returncode
        await asyncio.sleep(CALM_S)
        over.set()
        await asyncio.gather(*callers)
    seen.retries = proxy.counter("cluster.jobs.upstream_rq_retry")
    return seen


async def _call(jobs: GenerationServiceStub, seen: Seen, over: asyncio.Event) -> None:
    while not over.is_set():
        try:
            if random.random() < CREATE_SHARE:
                await jobs.CreateJob(pb.CreateJobRequest(request=request(seen.calls)), timeout=20)
            else:
                await jobs.ListJobs(pb.ListJobsRequest(page_size=5), timeout=20)
        except grpc.aio.AioRpcError as error:
            seen.failures[f"{error.code().name}: {error.details()}"] += 1
        seen.calls += 1


def main() -> None:
    """Print the table of docs/mesh.md."""
    for lame_duck_s in (ControllerConfig.lame_duck_s, 0.0):
        with tempfile.TemporaryDirectory() as folder:
            seen = measure(Path(folder), lame_duck_s)
        print(
            f"lame_duck_s {lame_duck_s:g}: {sum(seen.failures.values())} of {seen.calls} calls failed "
            f"{dict(seen.failures) or ''}, {seen.retries} tried again by the proxy; it looked away after "
            f"{seen.looked_away_s:.1f} s, the process ended after {seen.ended_s:.1f} s"
        )


if __name__ == "__main__":
    main()
