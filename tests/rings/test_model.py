"""The memory ring against a very simple model: a list of entries in the order of their tickets."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from triptych import errors
from triptych.rings import layout, recovery
from triptych.rings.layout import Geometry, Kind
from triptych.rings.memory import MemoryRing
from triptych.rings.ring import Removed
from triptych.v1.dispatch_pb2 import RING_PHASE2, Dispatch
from triptych.v1.ring_service_pb2 import Lease

T = TypeVar("T")
ATTEMPTS_MAX = 3
RANKS = st.integers(1, 4)


def now(call: Coroutine[Any, Any, T]) -> T:
    """Run a call that doesn't wait."""
    try:
        call.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited")


@dataclass
class Entry:
    """What the model knows of an entry."""

    name: str
    target: int
    lease: Lease | None = None
    attempt: int = 0


class RingModel(RuleBasedStateMachine):
    """Any order of calls by four ranks, some of which die."""

    leases: Bundle[Lease] = Bundle("leases")

    @initialize(start=st.sampled_from([1, 2, layout.TICKET_COUNT - 4]), slot_count=st.integers(1, 5))
    def make(self, start: int, slot_count: int) -> None:
        epoch = start * pow(layout.first_ticket(1), -1, layout.TICKET_COUNT) % layout.TICKET_COUNT
        self.letters: list[Removed] = []
        self.ring = MemoryRing(
            RING_PHASE2,
            epoch,
            attempts_max=ATTEMPTS_MAX,
            on_dead_letter=self.letters.append,
            geometry=Geometry(slot_count, 64),
            seed=1,
        )
        self.entries: list[Entry] = []
        self.dead: set[int] = set()
        self.count = 0

    @rule(sender=RANKS, receiver=st.integers(0, 4))
    def publish(self, sender: int, receiver: int) -> None:
        self.count += 1
        entry = Entry(f"job{self.count}", receiver)
        call = self.ring.publish(Dispatch(job_id=entry.name, sender_rank=sender), receiver)
        if sender in self.dead:
            with pytest.raises(errors.Fenced):
                now(call)
        elif len(self.entries) == self.ring.slot_count:
            with pytest.raises(errors.RingFull):
                now(call)
        else:
            now(call)
            if receiver in self.dead:
                assert self.letters.pop().dispatch.job_id == entry.name
            else:
                self.entries.append(entry)

    @rule(target=leases, rank=RANKS)
    def claim(self, rank: int) -> Any:
        if rank in self.dead:
            with pytest.raises(errors.Fenced):
                now(self.ring.claim(rank))
            return multiple()
        claimed = now(self.ring.claim(rank))
        fitting = [entry for entry in self.entries if entry.lease is None and entry.target in (0, rank)]
        if not fitting:
            assert claimed is None
            return multiple()
        assert claimed is not None
        assert (claimed.dispatch.job_id, claimed.lease.attempt) == (fitting[0].name, fitting[0].attempt)
        fitting[0].lease = claimed.lease
        return claimed.lease

    @rule(lease=leases, is_ack=st.booleans())
    def end(self, lease: Lease, is_ack: bool) -> None:
        call = self.ring.ack(lease) if is_ack else self.ring.nack(lease)
        held = [entry for entry in self.entries if entry.lease == lease]
        assert len(held) <= 1
        if lease.rank in self.dead:
            with pytest.raises(errors.Fenced):
                now(call)
        elif not held:
            with pytest.raises(errors.LeaseLost):
                now(call)
        else:
            now(call)
            if is_ack:
                self.entries.remove(held[0])
            else:
                held[0].lease = None
                held[0].attempt += 1

    @rule(target=leases, rank=RANKS)
    def adopt(self, rank: int) -> Any:
        self.count += 1
        name = f"job{self.count}"
        if rank in self.dead or len(self.entries) == self.ring.slot_count:
            with pytest.raises((errors.Fenced, errors.RingFull)):
                self.ring.adopt(Dispatch(job_id=name), rank)
            return multiple()
        lease = self.ring.adopt(Dispatch(job_id=name), rank)
        self.entries.append(Entry(name, 0, lease))
        return lease

    @precondition(lambda self: len(self.dead) < 3)
    @rule(rank=RANKS)
    def reap(self, rank: int) -> None:
        self.dead.add(rank)
        expected: dict[str, str] = {}
        redelivered: list[Lease] = []
        for entry in list(self.entries):
            if entry.lease is not None and entry.lease.rank == rank:
                if entry.attempt + 1 >= ATTEMPTS_MAX:
                    expected[entry.name] = recovery.PAST_CAP
                elif entry.target == rank:
                    expected[entry.name] = recovery.TARGET_DEAD
                else:
                    redelivered.append(entry.lease)
                    entry.lease = None
                    entry.attempt += 1
            elif entry.lease is None and entry.target == rank:
                expected[entry.name] = recovery.TARGET_DEAD
        self.entries = [entry for entry in self.entries if entry.name not in expected]
        claims, removed = self.ring.reap(rank)
        assert {one.dispatch.job_id: one.reason for one in removed} == expected
        assert sorted(claimed.lease.ticket for claimed in claims) == sorted(lease.ticket for lease in redelivered)
        assert self.ring.reap(rank) == ([], [])

    @invariant()
    def slots_show_the_model(self) -> None:
        if not hasattr(self, "ring"):
            return
        seen = {
            slot.dispatch.job_id: (slot.kind, slot.attempt, slot.rank) for slot in self.ring.slots() if slot.dispatch
        }
        assert seen == {
            entry.name: (Kind.LEASED, entry.attempt, entry.lease.rank)
            if entry.lease is not None
            else (Kind.READY, entry.attempt, entry.target)
            for entry in self.entries
        }
        stats = self.ring.stats()
        assert stats.ready_count + stats.leased_count == len(self.entries)
        assert not self.letters


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
