"""The conformance suite of all `Ring` drivers. A suite subclasses `RingConformance` and provides `harness`."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from typing import Protocol

import pytest

from tests.fleet.processes import eventually
from triptych import errors
from triptych.rings import layout, recovery
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Claimed, Removed, Ring
from triptych.v1.dispatch_pb2 import RING_PHASE1, ROLE_TRANSFORMER, Dispatch
from triptych.v1.ring_service_pb2 import Lease

RING = RING_PHASE1
ROLE = ROLE_TRANSFORMER
"""The role that claims from it."""
ATTEMPTS_MAX = 3
PATIENCE_S = 10.0
"""Bound on what should take milliseconds, on a machine that is busy with something else."""


class Harness(Protocol):
    """One ring under test."""

    host: MemoryRing
    """The controller's side of it."""
    dead_letters: list[Removed]

    def ring(self) -> Ring:
        """The ring as one more worker sees it."""


def job(name: str, sender: int = 0) -> Dispatch:
    """A dispatch that is recognised by its name."""
    return Dispatch(job_id=name, sender_rank=sender)


async def some(ring: Ring, rank: int, wait_s: float = PATIENCE_S) -> Claimed:
    """Claim something that is there."""
    claimed = await ring.claim(rank, wait_s)
    assert claimed is not None
    return claimed


class RingConformance:
    """The suite."""

    async def test_an_entry_comes_out_as_it_went_in_and_is_gone_after_the_ack(self, harness: Harness) -> None:
        ring = harness.ring()
        sent = job("one", sender=7)
        sent.room.room_id = 2**63 + 1
        sent.tensors.add(name="latents", shape=[1, 2, 3])
        ticket = await ring.publish(sent, 0)
        claimed = await some(ring, 9)
        assert claimed.dispatch == sent
        assert claimed.lease == Lease(ring=RING, slot=claimed.lease.slot, ticket=ticket, attempt=0, rank=9)
        await ring.ack(claimed.lease)
        assert await ring.claim(9) is None
        assert harness.host.stats()[:2] == (0, 0)

    async def test_first_in_first_out(self, harness: Harness) -> None:
        ring = harness.ring()
        names = [f"job{number}" for number in range(20)]
        tickets = [await ring.publish(job(name), 0) for name in names]
        assert all(layout.ticket_after(first, second) > 0 for first, second in itertools.pairwise(tickets))
        assert [(await some(ring, 1)).dispatch.job_id for _ in names] == names

    async def test_a_claim_on_an_empty_ring_says_so_at_once_or_after_its_wait(self, harness: Harness) -> None:
        ring = harness.ring()
        assert await ring.claim(1) is None
        before_s = time.monotonic()
        assert await ring.claim(1, 0.1) is None
        assert 0.09 <= time.monotonic() - before_s < PATIENCE_S

    async def test_a_waiting_claim_wakes_up_when_something_is_published(self, harness: Harness) -> None:
        claim = asyncio.create_task(harness.ring().claim(1, 60))
        await eventually(lambda: harness.host.stats().waiting_count == 1)
        before_s = time.monotonic()
        await harness.ring().publish(job("wake"), 0)
        claimed = await claim
        assert time.monotonic() - before_s < PATIENCE_S, "long before its wait is over"
        assert claimed is not None
        assert claimed.dispatch.job_id == "wake"

    async def test_one_entry_wakes_many_and_one_gets_it(self, harness: Harness) -> None:
        claims = [asyncio.create_task(harness.ring().claim(rank, 60)) for rank in range(1, 6)]
        await eventually(lambda: harness.host.stats().waiting_count == 5)
        for number in range(5):
            await harness.ring().publish(job(f"job{number}"), 0)
        claimed = await asyncio.gather(*claims)
        assert sorted(one.dispatch.job_id for one in claimed if one) == [f"job{number}" for number in range(5)]

    async def test_an_entry_for_one_rank_goes_to_that_rank_only(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("for five"), 5)
        await ring.publish(job("for anyone"), 0)
        assert (await some(ring, 4)).dispatch.job_id == "for anyone"
        assert await ring.claim(4) is None
        mine = await some(ring, 5)
        assert (mine.dispatch.job_id, mine.dispatch.receiver_rank) == ("for five", 5)

    async def test_a_targeted_entry_stays_targeted_when_handed_back(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("for five"), 5)
        await ring.nack((await some(ring, 5)).lease)
        assert await ring.claim(4) is None
        assert (await some(ring, 5)).lease.attempt == 1

    async def test_a_full_ring_refuses_and_blocks_nobody(self, harness: Harness) -> None:
        ring = harness.ring()
        count = harness.host.slot_count
        tickets = [await ring.publish(job(f"job{number}"), 0) for number in range(count)]
        for _ in range(3):
            with pytest.raises(errors.RingFull):
                await ring.publish(job("too many"), 0)
        first = await some(ring, 1)
        with pytest.raises(errors.RingFull):
            await ring.publish(job("too many"), 0)  # a lease keeps its slot
        await ring.ack(first.lease)
        last = await ring.publish(job("fits"), 0)
        assert layout.ticket_after(tickets[-1], last) == 1  # a refusal draws no ticket
        names = [(await some(ring, 1)).dispatch.job_id for _ in range(count)]
        assert names == [f"job{number}" for number in range(1, count)] + ["fits"]

    async def test_a_nack_puts_the_entry_back_in_its_place_with_the_next_attempt(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("first"), 0)
        await ring.publish(job("second"), 0)
        first = await some(ring, 1)
        await ring.nack(first.lease)
        again = await some(ring, 2)
        assert (again.dispatch.job_id, again.lease.ticket, again.lease.attempt) == ("first", first.lease.ticket, 1)
        for stale in (ring.ack, ring.nack):
            with pytest.raises(errors.LeaseLost):
                await stale(first.lease)
        await ring.ack(again.lease)
        assert harness.host.stats().redelivered_count == 1

    async def test_a_nack_wakes_a_waiting_claim(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("back"), 0)
        held = await some(ring, 1)
        claim = asyncio.create_task(harness.ring().claim(2, 60))
        await eventually(lambda: harness.host.stats().waiting_count == 1)
        await ring.nack(held.lease)
        async with asyncio.timeout(PATIENCE_S):
            assert (await claim) is not None

    @pytest.mark.parametrize("first", ["ack", "nack"])
    @pytest.mark.parametrize("second", ["ack", "nack"])
    async def test_a_lease_ends_once(self, harness: Harness, first: str, second: str) -> None:
        ring = harness.ring()
        await ring.publish(job("once"), 0)
        lease = (await some(ring, 1)).lease
        await getattr(ring, first)(lease)
        with pytest.raises(errors.LeaseLost):
            await getattr(ring, second)(lease)

    @pytest.mark.parametrize("field", ["ticket", "attempt", "rank", "slot"])
    async def test_a_lease_that_differs_in_one_field_is_refused(self, harness: Harness, field: str) -> None:
        ring = harness.ring()
        await ring.publish(job("mine"), 0)
        lease = (await some(ring, 1)).lease
        other = Lease()
        other.CopyFrom(lease)
        setattr(other, field, (getattr(lease, field) + 1) % 100)
        with pytest.raises(errors.LeaseLost):
            await ring.ack(other)
        await ring.ack(lease)

    async def test_the_dead_are_fenced_and_their_leases_redelivered(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("survives"), 0)
        lost = await some(ring, 1)
        redelivered, _ = harness.host.reap(1)
        assert redelivered == [lost]
        for late in (
            ring.ack(lost.lease),
            ring.nack(lost.lease),
            ring.claim(1),
            ring.publish(job("late", sender=1), 0),
        ):
            with pytest.raises(errors.Fenced):
                await late
        again = await some(ring, 2)
        assert (again.dispatch, again.lease.attempt) == (lost.dispatch, 1)
        await ring.ack(again.lease)

    async def test_reaping_ends_the_dead_ones_waiting_claim_and_wakes_another(self, harness: Harness) -> None:
        await harness.ring().publish(job("moves"), 0)
        await some(harness.ring(), 1)
        dead = asyncio.create_task(harness.ring().claim(1, 60))
        other = asyncio.create_task(harness.ring().claim(2, 60))
        await eventually(lambda: harness.host.stats().waiting_count == 2)
        harness.host.reap(1)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(errors.Fenced):
                await dead
            assert (await other) is not None

    async def test_past_the_cap_the_controller_gets_the_entry(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("kills"), 0)
        for rank in range(1, ATTEMPTS_MAX):
            await some(ring, rank)
            redelivered, _ = harness.host.reap(rank)
            assert len(redelivered) == 1
        last = await some(ring, ATTEMPTS_MAX)
        _, (removed,) = harness.host.reap(ATTEMPTS_MAX)
        assert removed == Removed(last.lease, last.dispatch, recovery.PAST_CAP)
        assert await ring.claim(50) is None

    async def test_an_entry_for_a_dead_rank_goes_to_the_controller(self, harness: Harness) -> None:
        ring = harness.ring()
        await ring.publish(job("before"), 5)
        _, (removed,) = harness.host.reap(5)
        assert (removed.dispatch.job_id, removed.reason) == ("before", recovery.TARGET_DEAD)
        await ring.publish(job("after"), 5)
        assert [letter.dispatch.job_id for letter in harness.dead_letters] == ["after"]
        assert harness.host.stats()[:2] == (0, 0)

    async def test_the_largest_dispatch_fits_and_one_byte_more_is_refused(self, harness: Harness) -> None:
        ring = harness.ring()
        largest = job("x" * (layout.PAYLOAD_BYTES_MAX - 3))
        assert largest.ByteSize() == layout.PAYLOAD_BYTES_MAX
        await ring.publish(largest, 0)
        with pytest.raises(errors.InvalidRequest, match=r"4097 bytes.*at most 4096"):
            await ring.publish(job("x" * (layout.PAYLOAD_BYTES_MAX - 2)), 0)
        assert (await some(ring, 1)).dispatch == largest
        assert await ring.claim(1) is None

    @pytest.mark.parametrize("rank", [0, layout.RANK_MAX + 1])
    async def test_only_ranks_claim(self, harness: Harness, rank: int) -> None:
        with pytest.raises(errors.InvalidRequest, match="rank"):
            await harness.ring().claim(rank)

    @pytest.mark.parametrize("wait_s", [-0.001, 60.001, math.nan, math.inf])
    async def test_no_wait_is_without_a_bound(self, harness: Harness, wait_s: float) -> None:
        with pytest.raises(errors.InvalidRequest, match="0 to 60"):
            await harness.ring().claim(1, wait_s)

    @pytest.mark.parametrize("target", [-1, layout.RANK_MAX + 1])
    async def test_only_ranks_are_targets(self, harness: Harness, target: int) -> None:
        with pytest.raises(errors.InvalidRequest, match="rank"):
            await harness.ring().publish(job("nobody"), target)

    async def test_a_lease_of_no_slot_or_another_ring_is_an_invalid_request(self, harness: Harness) -> None:
        ring = harness.ring()
        for wrong in (
            Lease(ring=RING, slot=harness.host.slot_count, rank=1),
            Lease(ring=RING, attempt=layout.ATTEMPT_MAX + 1, rank=1),
            Lease(ring=RING, ticket=layout.TICKET_COUNT, rank=1),
            Lease(ring=RING, rank=0),
            Lease(ring=RING, rank=layout.RANK_MAX + 1),
            Lease(ring=RING + 1, rank=1),
        ):
            with pytest.raises(errors.InvalidRequest):
                await ring.ack(wrong)

    async def test_many_at_once_each_exactly_once(self, harness: Harness) -> None:
        producers, consumers, each = 6, 6, 20
        got: list[str] = []

        async def produce(rank: int) -> None:
            ring = harness.ring()
            for number in range(each):
                await ring.publish(job(f"{rank}-{number}", sender=rank), 0)

        async def consume(rank: int) -> None:
            ring = harness.ring()
            while len(got) < producers * each:
                claimed = await ring.claim(rank, 0.05)
                if claimed is not None:
                    got.append(claimed.dispatch.job_id)
                    await ring.ack(claimed.lease)

        async with asyncio.timeout(3 * PATIENCE_S), asyncio.TaskGroup() as group:
            for rank in range(1, producers + 1):
                group.create_task(produce(rank))
                group.create_task(consume(100 + rank))
        assert sorted(got) == sorted(f"{rank}-{number}" for rank in range(1, producers + 1) for number in range(each))
        assert consumers == producers

    async def test_a_cancelled_claim_loses_nothing(self, harness: Harness) -> None:
        got: list[str] = []
        count = 40

        async def consume(rank: int) -> None:
            ring = harness.ring()
            turn = 0
            while len(got) < count:
                turn += 1
                claim = asyncio.create_task(ring.claim(rank, 1.0))
                patience_s = (turn * 7 % 5) * 0.0005 * (1 + turn / 50)  # a slow machine's answers arrive later
                done, _ = await asyncio.wait((claim,), timeout=patience_s)
                if not done:
                    claim.cancel()
                    done, _ = await asyncio.wait((claim,))
                # In a storm of cancellations gRPC also ends calls that nobody cancelled; their answers are lost, too.
                if claim.cancelled() or isinstance(claim.exception(), errors.Unavailable):
                    continue
                if (claimed := claim.result()) is not None:
                    await ring.ack(claimed.lease)
                    got.append(claimed.dispatch.job_id)

        async with asyncio.timeout(3 * PATIENCE_S), asyncio.TaskGroup() as group:
            for rank in (1, 2, 3):
                group.create_task(consume(rank))
            for number in range(count):
                await harness.ring().publish(job(f"job{number}"), 0)
                await asyncio.sleep(0.001)
        assert sorted(got) == sorted(f"job{number}" for number in range(count))
        await eventually(lambda: harness.host.stats()[:2] == (0, 0))

    async def test_a_newer_claim_of_a_rank_ends_the_older(self, harness: Harness) -> None:
        older = asyncio.create_task(harness.ring().claim(1, 60))
        await eventually(lambda: harness.host.stats().waiting_count == 1)
        newer = asyncio.create_task(harness.ring().claim(1, 60))
        async with asyncio.timeout(PATIENCE_S):
            assert (await older) is None
            await harness.ring().publish(job("newer's"), 0)
            assert (await newer) is not None
