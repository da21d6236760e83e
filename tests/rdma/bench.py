"""A ring on a card and workers' connections to it, in one process, a step at a time: for tests that break one thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from tests.rings.conformance import ATTEMPTS_MAX, RING
from tests.rings.tools import first
from triptych.rings import attach, protocol, recovery
from triptych.rings.layout import Geometry, Kind
from triptych.rings.memory import MemoryRing
from triptych.rings.program import Program
from triptych.rings.verbs.card import FULL_RIGHTS, Card, Rights
from triptych.rings.verbs.driver import Connection, VerbsDriver
from triptych.rings.verbs.host import RingHost

T = TypeVar("T")
EPOCH = 5
RANK = 7


class RingBench:
    """The controller's side, and connections to it."""

    def __init__(self, host_card: Card, card: Card) -> None:
        self.card, self.geometry = card, Geometry()
        self.host = RingHost(host_card, 1)
        self.driver = self.host.driver(0)
        self.ring = MemoryRing(
            RING, EPOCH, attempts_max=ATTEMPTS_MAX, driver=self.driver, on_fence=self.host.disconnect
        )

    @contextmanager
    def worker(self, rank: int = RANK, rights: Rights = FULL_RIGHTS, timeout_s: float = 5.0) -> Iterator[Worker]:
        """A worker that is connected; nothing is checked yet."""
        connection = Connection(self.card, self.geometry, timeout_s=timeout_s)
        far_end = self.host.connect(rank, connection.queue_pair.address, rights)
        connection.queue_pair.connect(far_end.address, initiates=True)
        try:
            yield Worker(connection, self.host.address(0), far_end.remote_key, rank)
        finally:
            connection.close()

    def run(self, program: Program[T]) -> T:
        """Run a program as the controller."""
        return self.driver.execute(program)

    def check_intact(self) -> None:
        """Check that no slot is taken, and that a new connection works from attach to ack."""
        for rank in (RANK, RANK + 1):
            self.host.disconnect(rank)
            self.ring.abandon(rank, [])
        assert {state.kind for state in self.run(recovery.states(self.geometry))} == {Kind.FREE}
        with self.worker() as worker:
            assert worker.run(attach.attach(self.geometry, RING, EPOCH)) is False
            worker.run(protocol.publish(self.geometry, b"intact", RANK, 0, first))
            claim = worker.run(protocol.claim(self.geometry, RANK, first))
            assert claim is not None
            assert claim.payload == b"intact"
            worker.run(protocol.ack(self.geometry, claim.held))

    def close(self) -> None:
        """Give the memory back."""
        self.host.close()


class Worker:
    """A connection, with the means to break it."""

    def __init__(self, connection: Connection, address: int, key: int, rank: int) -> None:
        self.connection, self.address, self.key, self.rank = connection, address, key, rank

    def run(self, program: Program[T], *, address: int | None = None, key: int | None = None) -> T:
        """Run a program, perhaps at another address or by another key."""
        base = self.address if address is None else address
        return VerbsDriver(self.connection, base, self.key if key is None else key).execute(program)
