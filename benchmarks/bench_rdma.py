"""The leased rings over RDMA, beside the same rings by gRPC and beside bare atomics, all in one run.

    faa      one fetch-and-add from Python, by the binding alone           the floor of everything over verbs
    verbs    publish, claim, ack by a worker on the second device
    rpc      the same through RingService, by the same worker

`perftest` is Debian's ib_atomic_lat, the floor without Python, where it is installed. Then two workers publish and
claim side by side, each way and mixed, and every message must arrive once. At last: how soon an idle worker notices
something, and what waiting costs it.

`make bench-rdma` runs this in a virtual machine, whose processor is emulated: compare, and read no figure as RDMA's.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.bench_rings import Line, lines
from services.controller.ring_service import RingServicer
from triptych import rdma_devices
from triptych.errors import RingFull
from triptych.rings import layout, protocol
from triptych.rings.access import RpcRing
from triptych.rings.memory import MemoryRing
from triptych.rings.program import FetchAdd, Program
from triptych.rings.ring import Membership, Ring
from triptych.rings.verbs.card import open_card
from triptych.rings.verbs.host import RingHost
from triptych.rings.verbs.ring import Connector, VerbsRing
from triptych.rpc import open_channel, start_server
from triptych.v1.dispatch_pb2 import RING_PHASE1, Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2_grpc import add_RingServiceServicer_to_server

EPOCH = 1
FAA_COUNT = 500
MESSAGES_EACH = 150
"""Published by each of the two workers."""
PICK_UPS = 10
IDLE_S = 3.0
"""How long an idle worker is watched; and long enough that its looks are as rare as they get."""
WORKER_TIMEOUT_S = 240.0
ROUND_TRIPS = {
    "publish": protocol.PUBLISH_ROUND_TRIPS,
    "claim": protocol.CLAIM_ROUND_TRIPS,
    "ack": protocol.ACK_ROUND_TRIPS,
    "empty claim": protocol.EMPTY_CLAIM_ROUND_TRIPS,
}


@dataclass
class BenchMember:
    """A worker that tells nobody what it has changed."""

    membership: Membership

    def changed(self, ring: RingName.ValueType) -> None:
        """See `rings.ring.Member`."""


class Waiting(NamedTuple):
    """What an idle worker is like."""

    pick_up_s: float
    cpu_share: float


@asynccontextmanager
async def served(device: str) -> AsyncIterator[str]:
    """A controller's ring on a card; the address of its RingService."""
    card = open_card(device)
    host = RingHost(card, 1)
    ring = MemoryRing(RING_PHASE1, EPOCH, attempts_max=3, driver=host.driver(0), on_fence=host.disconnect)
    servicer = RingServicer([ring], lambda rank: None, host)
    server = await start_server("127.0.0.1:0", [(add_RingServiceServicer_to_server, servicer, "RingService")])
    yield server.address
    await server.stop(0)
    host.close()
    card.close()


@asynccontextmanager
async def connected(address: str, device: str) -> AsyncIterator[Connector]:
    """A worker's connection over RDMA."""
    async with open_channel(address) as channel:
        card = open_card(device)
        connector = Connector(channel, card, [RING_PHASE1])
        yield connector
        await connector.close()
        card.close()


@asynccontextmanager
async def worker(way: str, address: str, device: str, rank: int) -> AsyncIterator[Ring]:
    """The ring as a worker sees it, by `verbs` or `rpc`."""
    if way == "rpc":
        async with open_channel(address) as channel:
            yield RpcRing(channel, RING_PHASE1)
    else:
        async with connected(address, device) as connector:
            yield VerbsRing(connector, RING_PHASE1, BenchMember(Membership(rank, EPOCH)))


async def faa_per_second(address: str, device: str) -> float:
    """Fetch-and-adds in a row on the scratch word, each waited for."""
    async with connected(address, device) as connector:
        driver = await connector.driver(RING_PHASE1, Membership(1, EPOCH))
        started_s = time.perf_counter()
        for _ in range(FAA_COUNT):
            driver.execute(_add_one())
        return FAA_COUNT / (time.perf_counter() - started_s)


def _add_one() -> Program[int]:
    (before,) = yield (FetchAdd(layout.SCRATCH_OFFSET, 1),)
    return int(before)


def perftest_us(devices: tuple[str, str]) -> float | None:
    """Typical latency of a fetch-and-add between the devices, by ib_atomic_lat; None where it isn't installed."""
    if shutil.which("ib_atomic_lat") is None:
        return None
    gids = [rdma_devices.choose(device, rdma_devices.ports()).gid for device in devices]
    target = ".".join(str(part) for part in gids[0].value[-4:])
    flags = ["ib_atomic_lat", "-A", "FETCH_AND_ADD", "-n", "1000", "-F"]
    server = subprocess.Popen([*flags, "-d", devices[0], "-x", str(gids[0].index)], stdout=subprocess.DEVNULL)
    client = [*flags, "-d", devices[1], "-x", str(gids[1].index), target]
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:  # until the server listens
        done = subprocess.run(client, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            server.wait(20)
            row = re.search(r"^\s*8\s+1000\s+(.*)$", done.stdout, re.MULTILINE)
            return float(row.group(1).split()[2]) if row else None
    server.kill()
    return None


async def waiting(way: str, address: str, device: str, *, is_hinted: bool = False) -> Waiting:
    """An idle worker: how soon it has what is published, and the share of a core that it takes meanwhile.

    The hint is the one that the heartbeat stream carries; the stream itself is not included.
    """
    async with worker(way, address, device, 1) as idle, worker(way, address, device, 2) as busy:
        assert await idle.claim(1) is None
        delays_s = []
        for number in range(PICK_UPS):
            claim = asyncio.create_task(idle.claim(1, 60))
            await asyncio.sleep(0.3 + number * 0.007)  # until its looks are rare, and at any point between two
            await busy.publish(Dispatch(job_id="late", sender_rank=2), 0)
            published_s = time.perf_counter()
            if is_hinted:
                idle.hint()
            claimed = await claim
            delays_s.append(time.perf_counter() - published_s)
            assert claimed is not None
            await idle.ack(claimed.lease)
        claim = asyncio.create_task(idle.claim(1, 60))
        before_s = time.process_time()
        await asyncio.sleep(IDLE_S)
        share = (time.process_time() - before_s) / IDLE_S
        claim.cancel()
        await asyncio.wait((claim,))
    return Waiting(statistics.median(delays_s), share)


async def side_by_side(way: str, address: str, device: str, rank: int) -> None:
    """A worker process: publish its messages while claiming whatever comes; print what it claimed."""
    got: list[str] = []
    async with worker(way, address, device, rank) as ring:

        async def publish() -> None:
            for number in range(MESSAGES_EACH):
                while True:
                    try:
                        await ring.publish(Dispatch(job_id=f"{rank}-{number}", sender_rank=rank), 0)
                        break
                    except RingFull:
                        await asyncio.sleep(0.01)

        publishing = asyncio.create_task(publish())
        while (claimed := await ring.claim(rank, 3.0)) is not None:
            got.append(claimed.dispatch.job_id)
            await ring.ack(claimed.lease)
        await publishing
    print(json.dumps(got))


async def lost_count(address: str, ways: tuple[str, str], devices: tuple[str, str]) -> tuple[int, int, float]:
    """Messages lost, messages delivered twice, and messages per second, of two workers side by side."""
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.bench_rdma", "--worker", way, address, device, str(rank)),
            stdout=subprocess.PIPE,
        )
        for rank, (way, device) in enumerate(zip(ways, devices, strict=True), 1)
    ]
    started_s = time.monotonic()
    answers = await asyncio.wait_for(asyncio.gather(*(one.communicate() for one in workers)), WORKER_TIMEOUT_S)
    got = [name for out, _ in answers for name in json.loads(out)]
    sent = {f"{rank}-{number}" for rank in (1, 2) for number in range(MESSAGES_EACH)}
    return len(sent - set(got)), len(got) - len(set(got)), len(got) / (time.monotonic() - started_s)


async def main() -> None:
    """Measure and print everything."""
    active = [port.device for port in rdma_devices.ports() if port.is_active]
    if not active:
        raise SystemExit("no RDMA device here: `make bench-rdma` runs this in a virtual machine that has two")
    devices = active[0], active[-1]
    async with served(devices[0]) as address:
        latency_us = await asyncio.to_thread(perftest_us, devices)
        faa = await faa_per_second(address, devices[1])
        print(f"raw fetch-and-add  perftest {latency_us or float('nan'):8.1f} µs    from Python {1e6 / faa:8.1f} µs\n")
        measured = {}
        for way in ("verbs", "rpc"):
            async with worker(way, address, devices[1], 1) as ring:
                measured[way] = await lines(way, ring, dict.fromkeys(ROUND_TRIPS, faa))
        show(measured["verbs"], measured["rpc"], faa)
        print()
        for ways in (("verbs", "verbs"), ("rpc", "rpc"), ("verbs", "rpc")):
            lost, doubled, per_second = await lost_count(address, ways, devices)
            print(f"{' + '.join(ways):16}{2 * MESSAGES_EACH} messages, {per_second:6.0f} a second: ", end="")
            print(f"{lost} lost, {doubled} delivered twice", flush=True)
        print()
        for way, is_hinted in (("verbs", False), ("verbs", True), ("rpc", False)):
            idle = await waiting(way, address, devices[1], is_hinted=is_hinted)
            print(
                f"idle by {way:6} {'with a hint' if is_hinted else '':12}pick-up {idle.pick_up_s * 1e3:6.1f} ms, ",
                end="",
            )
            print(f"waiting takes {idle.cpu_share:.2%} of a core", flush=True)


def show(verbs: list[Line], rpc: list[Line], faa: float) -> None:
    """Print both ways beside each other; the floor of an operation is one fetch-and-add for each round trip."""
    print(f"{'operation':13}{'round trips':>11}{'verbs/s':>9}{'of the FAA floor':>18}{'rpc/s':>9}{'verbs : rpc':>13}")
    for ours, theirs in zip(verbs, rpc, strict=True):
        trips = ROUND_TRIPS[ours.operation]
        print(f"{ours.operation:13}{trips:11}{ours.per_second:9,.0f}{ours.per_second * trips / faa:18.2f}", end="")
        print(f"{theirs.per_second:9,.0f}{ours.per_second / theirs.per_second:13.1f}", flush=True)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        way, address, device, rank = sys.argv[2:]
        asyncio.run(side_by_side(way, address, device, int(rank)))
    else:
        asyncio.run(main())
