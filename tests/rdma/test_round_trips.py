"""The cost of each operation on a real card in posts and work requests. Nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest

from tests.rdma.bench import RANK, RingBench, Worker, first
from tests.rings.tools import FULL_PUBLISH_ROUND_TRIPS, NACK_ROUND_TRIPS, REDELIVERY_ROUND_TRIPS
from triptych.errors import RingFull
from triptych.rings import protocol, recovery
from triptych.rings.layout import Geometry
from triptych.rings.program import Program
from triptych.rings.verbs.card import BINDINGS, Card, find_binding, open_card

T = TypeVar("T")
GEOMETRY = Geometry()


@pytest.fixture(params=BINDINGS)
def bench(request: pytest.FixtureRequest, card: Card, devices: tuple[str, str]) -> Iterator[RingBench]:
    if isinstance(reason := find_binding(request.param), str):
        pytest.skip(reason)
    other = open_card(devices[1], request.param)
    bench = RingBench(card, other)
    yield bench
    bench.close()
    other.close()


class Meter:
    """Runs programs and tells what the last one took."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def spent(self, program: Program[T]) -> tuple[T, int, int]:
        """Result, posts and work requests. No completion is left in the queue: one for each post came."""
        connection = self._worker.connection
        posts, requests = connection.post_count, connection.request_count
        result = self._worker.run(program)
        assert connection.queue_pair.poll() is None
        return result, connection.post_count - posts, connection.request_count - requests


def test_round_trips_and_work_requests(bench: RingBench) -> None:
    with bench.worker() as worker:
        meter = Meter(worker)
        assert meter.spent(protocol.claim(GEOMETRY, RANK, first)) == (None, protocol.EMPTY_CLAIM_ROUND_TRIPS, 1)
        _, posts, requests = meter.spent(protocol.publish(GEOMETRY, b"x" * 4096, RANK, 0, first))
        assert (posts, requests) == (protocol.PUBLISH_ROUND_TRIPS, 5)
        claim, posts, requests = meter.spent(protocol.claim(GEOMETRY, RANK, first))
        assert (posts, requests) == (protocol.CLAIM_ROUND_TRIPS, 4)
        assert claim is not None
        assert claim.payload == b"x" * 4096
        assert meter.spent(protocol.nack(GEOMETRY, claim.held)) == (True, NACK_ROUND_TRIPS, 2)
        claim, posts, _ = meter.spent(protocol.claim(GEOMETRY, RANK, first))
        assert claim is not None
        assert posts == protocol.CLAIM_ROUND_TRIPS + REDELIVERY_ROUND_TRIPS
        assert meter.spent(protocol.ack(GEOMETRY, claim.held)) == (None, protocol.ACK_ROUND_TRIPS, 1)
        assert bench.ring.stats().redelivered_count == 1


def test_a_full_ring_costs_one_look_and_a_look_at_all_of_it_two(bench: RingBench) -> None:
    with bench.worker() as worker:
        meter = Meter(worker)
        for _ in range(GEOMETRY.slot_count):
            worker.run(protocol.publish(GEOMETRY, b"x", RANK, 0, first))
        posts = worker.connection.post_count
        with pytest.raises(RingFull):
            worker.run(protocol.publish(GEOMETRY, b"x", RANK, 0, first))
        assert worker.connection.post_count - posts == FULL_PUBLISH_ROUND_TRIPS
        views, posts, requests = meter.spent(recovery.snapshot(GEOMETRY))
        assert (posts, requests) == (3, GEOMETRY.slot_count + 2)
        assert all(payload == b"x" for _, payload in views)
