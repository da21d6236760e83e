"""Each condition that verbs can violate, violated alone: a named error in bounded time, and the ring is as before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.rdma.bench import EPOCH, RANK, RingBench, Worker
from tests.rings.conformance import RING, job
from tests.rings.tools import first
from triptych.errors import RingMismatch, RingRefused, RingUnreachable
from triptych.rings import attach, layout, protocol
from triptych.rings.layout import Geometry, Kind
from triptych.rings.program import CompareSwap, FetchAdd, Program, Read, Write
from triptych.rings.verbs.card import BINDINGS, FULL_RIGHTS, Card, Rights, Status, find_binding, open_card
from triptych.rings.verbs.driver import CHAIN_TIMEOUT_S

BOUND_S = 6 * CHAIN_TIMEOUT_S
"""No test waits for more than two chains; the rest is for an emulated machine that stalls."""
GEOMETRY = Geometry()


@pytest.fixture(params=BINDINGS)
def worker_card(request: pytest.FixtureRequest, devices: tuple[str, str]) -> Iterator[Card]:
    """The worker's card, through each binding."""
    if isinstance(reason := find_binding(request.param), str):
        pytest.skip(reason)
    card = open_card(devices[1], request.param)
    yield card
    card.close()


@pytest.fixture
def bench(card: Card, worker_card: Card) -> Iterator[RingBench]:
    """A ring that must be intact in the end, in time."""
    bench = RingBench(card, worker_card)
    started_s = time.monotonic()
    yield bench
    assert time.monotonic() - started_s < BOUND_S
    bench.check_intact()
    bench.close()


def add_one() -> Program[int]:
    """The smallest atomic program."""
    (before,) = yield (FetchAdd(layout.SCRATCH_OFFSET, 1),)
    return before


def swap_one() -> Program[int]:
    """The other atomic."""
    (before,) = yield (CompareSwap(layout.SCRATCH_OFFSET, 0, 0),)
    return before


def look() -> Program[bytes]:
    """A read."""
    (data,) = yield (Read(0, layout.WORD_BYTES),)
    return data


def overwrite(offset: int) -> Program[None]:
    """A write."""
    yield (Write(offset, b"late write"),)


@pytest.mark.parametrize("program", [add_one, swap_one])
def test_no_right_to_atomics(bench: RingBench, program: object) -> None:
    with bench.worker(rights=FULL_RIGHTS & ~Rights.ATOMIC) as worker:
        worker.run(look())
        with pytest.raises(RingRefused, match="right"):
            worker.run(program())  # type: ignore[operator]


def test_no_right_to_write(bench: RingBench) -> None:
    with bench.worker(rights=Rights.LOCAL | Rights.READ) as worker:
        worker.run(look())
        with pytest.raises(RingRefused):
            worker.run(overwrite(layout.SCRATCH_OFFSET))


@pytest.mark.parametrize("program", [add_one, look])
def test_wrong_key(bench: RingBench, program: object) -> None:
    with bench.worker() as worker, pytest.raises(RingRefused, match="key"):
        worker.run(program(), key=worker.key ^ 0x5500)  # type: ignore[operator]


def test_a_key_is_of_one_connection_only(bench: RingBench) -> None:
    with bench.worker() as worker, bench.worker(RANK + 1) as other:
        worker.run(look())
        with pytest.raises(RingRefused):
            other.run(look(), key=worker.key)
        worker.run(look())


@pytest.mark.parametrize("program", [add_one, swap_one])
def test_misaligned(bench: RingBench, program: object) -> None:
    with bench.worker() as worker, pytest.raises(RingRefused):
        worker.run(program(), address=worker.address + 4)  # type: ignore[operator]


@pytest.mark.parametrize("program", [add_one, look])
@pytest.mark.parametrize("distance", [GEOMETRY.ring_bytes, -GEOMETRY.ring_bytes])
def test_out_of_range(bench: RingBench, program: object, distance: int) -> None:
    with bench.worker() as worker, pytest.raises(RingRefused, match="range"):
        worker.run(program(), address=worker.address + distance)  # type: ignore[operator]


def test_wrong_epoch(bench: RingBench) -> None:
    with bench.worker() as worker, pytest.raises(RingMismatch, match=r"epoch is 0x5, .* wants 0x6"):
        worker.run(attach.attach(GEOMETRY, RING, EPOCH + 1))


@pytest.mark.parametrize("other", [Geometry(slot_count=64), Geometry(payload_bytes_max=2048)])
def test_wrong_geometry(bench: RingBench, other: Geometry) -> None:
    with bench.worker() as worker, pytest.raises(RingMismatch, match=r"slot_count|payload_bytes_max"):
        worker.run(attach.attach(other, RING, EPOCH))


def test_wrong_ring(bench: RingBench) -> None:
    with bench.worker() as worker, pytest.raises(RingMismatch, match="ring is"):
        worker.run(attach.attach(GEOMETRY, RING + 1, EPOCH))


def test_wrong_byte_order(bench: RingBench) -> None:
    """A controller of the other endianness has formatted the ring."""
    (header,) = bench.run(_read(0, layout.RING_HEADER_BYTES))
    turned = b"".join(header[at : at + 8][::-1] for at in range(0, layout.RING_HEADER_BYTES, 8))
    bench.run(_write(0, turned))
    with bench.worker() as worker, pytest.raises(RingMismatch):
        worker.run(attach.attach(GEOMETRY, RING, EPOCH))
    bench.run(_write(0, header))


def test_a_card_that_answers_in_the_other_byte_order_is_found_out(bench: RingBench) -> None:
    with bench.worker() as worker:
        driver = bench.host.driver(0)
        driver.answers_swapped = True  # as if the card's answers were big-endian
        assert driver.execute(attach.attach(GEOMETRY, RING, EPOCH)) is True
        assert worker.run(attach.attach(GEOMETRY, RING, EPOCH)) is False


@pytest.mark.parametrize("chains", [1, 2, 3])
def test_the_peer_goes_away_in_the_middle_of_a_publication(bench: RingBench, chains: int) -> None:
    with bench.worker() as worker:
        program, chain = _begun(worker, protocol.publish(GEOMETRY, b"half", RANK, 0, first), chains)
        bench.host.disconnect(RANK)
        with pytest.raises(RingUnreachable, match="RETRY_EXC_ERR"):
            _step(worker, chain)
        program.close()
    expected = Kind.WRITING if chains == 3 else Kind.FREE
    assert bench.ring.slots()[0].kind is expected


def test_the_peer_goes_away_in_the_middle_of_a_claim(bench: RingBench) -> None:
    bench.run(protocol.publish(GEOMETRY, job("kept").SerializeToString(), 0, 0, first))
    with bench.worker() as worker:
        _, chain = _begun(worker, protocol.claim(GEOMETRY, RANK, first), 1)
        bench.host.disconnect(RANK)
        with pytest.raises(RingUnreachable):
            _step(worker, chain)
    claim = bench.run(protocol.claim(GEOMETRY, 1, first))
    assert claim is not None
    bench.run(protocol.ack(GEOMETRY, claim.held))


def test_a_queue_pair_in_error_stays_there(bench: RingBench) -> None:
    with bench.worker() as worker:
        with pytest.raises(RingRefused):
            worker.run(look(), key=worker.key ^ 0x5500)
        with pytest.raises(RingUnreachable, match="broken"):
            worker.run(look())
        worker.connection.is_broken = False  # what the card itself says
        with pytest.raises(RingUnreachable, match=Status.WR_FLUSH_ERR.name):
            worker.run(look())


def test_a_completion_that_does_not_come(bench: RingBench) -> None:
    """The card goes on trying for two seconds; the driver was told to wait for a twentieth of one."""
    with bench.worker(timeout_s=0.05) as worker:
        bench.host.disconnect(RANK)
        started_s = time.monotonic()
        with pytest.raises(RingUnreachable, match=r"did not complete within 0\.05 s"):
            worker.run(look())
        assert time.monotonic() - started_s < CHAIN_TIMEOUT_S


def test_a_peer_that_never_was(bench: RingBench) -> None:
    with bench.worker() as worker:
        bench.host.disconnect(RANK)
        with bench.worker(RANK + 1), pytest.raises(RingUnreachable):
            worker.run(look())


def test_a_late_write_of_a_fenced_rank_does_not_land(bench: RingBench) -> None:
    """It reserved a slot, slept, was taken for dead; the slot is another's by the time that it writes."""
    with bench.worker() as worker:
        _, chain = _begun(worker, protocol.publish(GEOMETRY, b"late", RANK, 0, first), 3)
        slot = bench.ring.slots()[0]
        assert (slot.kind, slot.rank) == (Kind.WRITING, RANK)
        bench.ring.reap(RANK)
        assert bench.ring.slots()[0].kind is Kind.FREE
        bench.run(protocol.publish(GEOMETRY, job("another's").SerializeToString(), 0, 0, first))
        with pytest.raises(RingUnreachable):
            _step(worker, chain)
        claim = bench.run(protocol.claim(GEOMETRY, 1, first))
        assert claim is not None
        assert claim.payload == job("another's").SerializeToString()
        bench.run(protocol.ack(GEOMETRY, claim.held))
    bench.ring = type(bench.ring)(RING, EPOCH, attempts_max=3, driver=bench.driver)  # in which the rank lives again


def _begun(worker: Worker, program: Program[object], chains: int) -> tuple[Program[object], tuple]:
    """Run the first chains of a program; the program, and the chain that comes next."""
    chain = next(program)
    for _ in range(chains):
        chain = program.send(_step(worker, chain))
    return program, chain


def _step(worker: Worker, chain: tuple) -> tuple:
    return worker.connection.run(chain, worker.address, worker.key, False)


def _read(offset: int, size_bytes: int) -> Program[tuple[bytes]]:
    return (yield (Read(offset, size_bytes),))


def _write(offset: int, data: bytes) -> Program[None]:
    yield (Write(offset, data),)
