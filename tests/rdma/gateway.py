"""A process of workers that reach a ring over RDMA, remote-controlled by the RingService that they don't use.

The tests call its RingService by gRPC; each rank they name is a worker here, with a connection of its own to the
controller's memory. Line by line on stdin: `use HOST:PORT` (the controller to connect to; answered by `ok`).
"""

from __future__ import annotations

import asyncio
import mmap
import os
import selectors
import subprocess
import sys
import tempfile
from types import TracebackType

import grpc

from services.controller.ring_service import RingServicer
from tests.rings.conformance import RING
from tests.rings.tools import FixedMember, service_of
from triptych.rings import layout
from triptych.rings.ring import Claimed, Membership
from triptych.rings.verbs.card import Card, open_card
from triptych.rings.verbs.ring import Connector, VerbsRing
from triptych.rpc import open_channel, start_server
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.ring_service_pb2 import Lease

ANSWER_TIMEOUT_S = 60.0
"""A process starts slowly on an emulated machine."""
OWN_RANK = 1000
"""Ranks from here on are those of workers that publish what names no sender."""


class Workers:
    """A ring as many workers see it: each call goes to the worker of its rank."""

    slot_count, epoch, name = layout.SLOT_COUNT, 0, RING

    def __init__(self, card: Card, waiting: mmap.mmap | bytearray, own_rank: int) -> None:
        self._card, self._waiting, self._own_rank = card, waiting, own_rank
        self._channel: grpc.aio.Channel | None = None
        self._rings: dict[int, tuple[Connector, VerbsRing]] = {}
        self._held: set[bytes] = set()

    async def use(self, address: str) -> None:
        """Forget the last controller and its ring, and connect to another when needed."""
        await self.close()
        self._waiting[:8] = bytes(8)
        self._channel = open_channel(address)

    async def close(self) -> None:
        """Forget the controller."""
        for connector, _ in self._rings.values():
            await connector.close()
        self._rings.clear()
        if self._channel is not None:
            await self._channel.close()

    @property
    def waiting_count(self) -> int:
        """Claims under way."""
        return int.from_bytes(self._waiting[:8], "little")

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        return await self._of(dispatch.sender_rank or self._own_rank).publish(dispatch, target_rank)

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        self._count(1)
        try:
            claimed = await self._of(rank).claim(rank, wait_s)
        finally:
            self._count(-1)
        if claimed is not None:
            self._held.add(claimed.lease.SerializeToString())
        return claimed

    async def ack(self, lease: Lease) -> None:
        self._held.discard(lease.SerializeToString())
        await self._of(lease.rank).ack(lease)

    async def nack(self, lease: Lease) -> None:
        self._held.discard(lease.SerializeToString())
        await self._of(lease.rank).nack(lease)

    def hint(self) -> None:
        for _, ring in self._rings.values():
            ring.hint()

    def holds(self, lease: Lease) -> bool:
        return lease.SerializeToString() in self._held

    def _of(self, rank: int) -> VerbsRing:
        if rank not in self._rings:
            assert self._channel is not None
            connector = Connector(self._channel, self._card, [RING])
            self._rings[rank] = connector, VerbsRing(connector, RING, FixedMember(Membership(rank, 1)))
        return self._rings[rank][1]

    def _count(self, more: int) -> None:
        self._waiting[:8] = (self.waiting_count + more).to_bytes(8, "little")


class Gateway:
    """Starts a gateway process and tells it what to do."""

    def __init__(self, device: str, binding: str) -> None:
        self._counter = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the process)
        self._counter.truncate(8)
        self._waiting = mmap.mmap(self._counter.fileno(), 8)
        command = [sys.executable, "-m", "tests.rdma.gateway", device, binding, self._counter.name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = ""

    @property
    def waiting_count(self) -> int:
        """Claims under way in its workers."""
        return int.from_bytes(self._waiting[:8], "little")

    def use(self, address: str) -> None:
        """Have it connect to another controller."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"use {address}\n")
        self.process.stdin.flush()
        assert self._answer() == "ok"

    def __enter__(self) -> Gateway:
        self.address = self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate(timeout=ANSWER_TIMEOUT_S)
        self._counter.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(ANSWER_TIMEOUT_S), "the gateway doesn't answer"
        return self.process.stdout.readline().strip()


async def main(device: str, binding: str, counter: str) -> None:
    with open(counter, "r+b") as file:  # noqa: ASYNC230
        waiting = mmap.mmap(file.fileno(), 8)
    workers = Workers(open_card(device, binding), waiting, OWN_RANK + os.getpid())
    servicer = RingServicer([workers], lambda rank: None)  # type: ignore[list-item]
    server = await start_server("127.0.0.1:0", [service_of(servicer)])
    print(server.address, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await workers.use(line.split()[1])
        print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
