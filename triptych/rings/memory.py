"""The controller's ring: `MemoryRing`, and the driver for a ring in this process's own memory.

On one event loop's thread a program runs from start to end without interruption, so its operations are atomic without
locks. That doesn't hold where NICs write to the same memory, since their atomics aren't atomic with the CPU's: the
controller then gives `MemoryRing` a driver that goes through its own NIC, `verbs.host`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from triptych import errors
from triptych.rings import attach, layout, protocol, recovery
from triptych.rings.layout import Geometry, Kind
from triptych.rings.program import CompareSwap, Driver, FetchAdd, Operation, Program, Read, Write, drive
from triptych.rings.ring import (
    Claimed,
    Removed,
    RingStats,
    SlotState,
    check_rank,
    dispatch_in,
    held_of,
    lease_of,
    payload_of,
)
from triptych.rings.waiting import Waiters
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.dispatch_pb2 import Ring as RingName
from triptych.v1.ring_service_pb2 import Lease

T = TypeVar("T")


class MemoryDriver:
    """Runs programs on a `bytearray` or `mmap` of this process."""

    name = "memory"
    is_shared = False

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.answers_swapped = False

    def execute(self, program: Program[T]) -> T:
        """Run a program to its end; raise what it raises."""
        return drive(program, lambda chain: tuple(self.perform(operation) for operation in chain))

    def perform(self, operation: Operation) -> Any:
        """Perform one operation and return its result."""
        memory = self._memory
        offset = operation.offset
        match operation:
            case Read():
                return bytes(memory[offset : offset + operation.size_bytes])
            case Write():
                memory[offset : offset + len(operation.data)] = operation.data
                return None
            case FetchAdd() | CompareSwap():
                assert offset % layout.WORD_BYTES == 0
                word = layout.word_at(bytes(memory[offset : offset + layout.WORD_BYTES]))
                if isinstance(operation, FetchAdd):
                    memory[offset : offset + layout.WORD_BYTES] = layout.word_bytes(word + operation.addend)
                elif word == operation.expected:
                    memory[offset : offset + layout.WORD_BYTES] = layout.word_bytes(operation.replacement)
                return word


def ignore(*_: object) -> None:
    """Do nothing: the default of a ring's callbacks."""


class MemoryRing:
    """A ring in the controller's memory: the `Ring` that `RingService` serves, with methods for the controller only.

    A driver that fails in the middle of a program ends the ring: slots of rank 0 may stay reserved, and entries that a
    reap removed are lost. The process must then end, and start again with the next epoch.

    All methods belong to one event loop's thread. Each does its whole change before its first await, and `claim`
    takes its lease after its last: a cancelled call has either done nothing or is finished.
    """

    def __init__(
        self,
        name: RingName.ValueType,
        epoch: int,
        *,
        attempts_max: int,
        on_dead_letter: Callable[[Removed], None] = ignore,
        on_fence: Callable[[int], None] = ignore,
        on_ready: Callable[[], None] = ignore,
        geometry: Geometry = Geometry(),  # noqa: B008  (a NamedTuple, immutable)
        driver: Driver | None = None,
        seed: int | None = None,
    ) -> None:
        """Make an empty ring.

        A reap removes an entry that was delivered `attempts_max` times. `on_dead_letter` gets entries that other calls
        remove (a publish for a dead rank, a nack past the last attempt); `reap` returns those that it removes.
        `on_fence` must cut a rank off from the memory before it returns. `on_ready` is called when an entry may have
        become claimable. `driver` reaches memory elsewhere, which must be zeroed. Raises RingMismatch if the memory
        can't be used.
        """
        self.name = name
        self.epoch = epoch
        self.slot_count = geometry.slot_count
        self._geometry = geometry
        self._attempts_max = attempts_max
        self._on_dead_letter = on_dead_letter
        self._on_fence = on_fence
        self._on_ready = on_ready
        self._choose = random.Random(seed).randrange
        self.driver = driver or MemoryDriver(memoryview(bytearray(geometry.ring_bytes)))
        self._fenced: set[int] = set()
        self._waiters = Waiters(polls=self.driver.is_shared)
        self.driver.execute(attach.format_ring(geometry, name, epoch))
        self.driver.answers_swapped = self.driver.execute(attach.attach(geometry, name, epoch))

    async def publish(self, dispatch: Dispatch, target_rank: int) -> int:
        """See `Ring.publish`. An entry for a dead rank goes to `on_dead_letter` immediately."""
        self._check_alive(dispatch.sender_rank)
        payload = payload_of(dispatch, target_rank, self._geometry)
        program = protocol.publish(self._geometry, payload, dispatch.sender_rank, target_rank, self._choose)
        ticket = self.driver.execute(program)
        if target_rank in self._fenced:
            self._remove(target_rank)
        else:
            self._wake()
        return ticket

    async def claim(self, rank: int, wait_s: float = 0.0) -> Claimed | None:
        """See `Ring.claim`. A newer claim by the same rank ends an older one that still waits."""
        return await self._waiters.claim(rank, wait_s, self._take)

    async def ack(self, lease: Lease) -> None:
        """See `Ring.ack`."""
        self._check_alive(lease.rank)
        self.driver.execute(protocol.ack(self._geometry, held_of(lease, self.name, self._geometry)))

    async def nack(self, lease: Lease) -> None:
        """See `Ring.nack`."""
        self._check_alive(lease.rank)
        if self.driver.execute(protocol.nack(self._geometry, held_of(lease, self.name, self._geometry))):
            self._wake()
        else:
            self._remove(0)

    def hint(self) -> None:
        """See `Ring.hint`. Also removes entries for dead ranks, and parked ones.

        Call it regularly if other machines change the memory: nothing else finds such entries.
        """
        found = self.driver.execute(recovery.states(self._geometry))
        for rank in {state.rank for state in found if state.kind is Kind.READY and state.rank in self._fenced}:
            self._remove(rank)
        if any(state.kind is Kind.LEASED and state.rank == 0 for state in found):
            self._remove(0)
        if any(state.kind is Kind.READY for state in found):
            self._wake()

    def adopt(self, dispatch: Dispatch, rank: int) -> Lease:
        """Put a dispatch that `rank` already works on into the ring, as leased by it. Raises RingFull and Fenced."""
        self._check_alive(rank, least=1)
        payload = payload_of(dispatch, dispatch.receiver_rank, self._geometry)
        program = protocol.adopt(self._geometry, payload, rank, dispatch.receiver_rank, self._choose)
        return lease_of(self.driver.execute(program), self.name)

    def reap(self, rank: int) -> tuple[list[Claimed], list[Removed]]:
        """Fence `rank` for good and clean up after it. Running it again is harmless.

        Returns the claims of `rank` that are READY again, with attempt + 1, and the entries that were removed. From now
        on every call of `rank` raises Fenced, including its waiting claim.
        """
        self.fence(rank)
        reaped = self._reap(rank)
        redelivered = [Claimed.of(claim, self.name) for claim in reaped.redelivered]
        return redelivered, [Removed.of(removal, self.name) for removal in reaped.removed]

    def withdraw(self, is_unwanted: Callable[[Dispatch], bool]) -> list[Removed]:
        """Remove the waiting entries that are `is_unwanted`, and return them."""
        program = recovery.withdraw(self._geometry, lambda payload: is_unwanted(dispatch_in(payload)))
        return [Removed.of(removal, self.name) for removal in self.driver.execute(program)]

    def fence(self, rank: int) -> None:
        """Cut a rank off for good: from now on it can change nothing."""
        check_rank("rank", rank, least=1)
        self._fenced.add(rank)
        self._on_fence(rank)

    def abandon(self, rank: int, kept: Iterable[Lease]) -> None:
        """Clean up after a broken connection of `rank` to the memory, which must have been torn down.

        `kept` are the leases that the rank knows of; those of other rings are ignored. Raises InvalidRequest.
        """
        self._check_alive(rank, least=1)
        stay = [held_of(lease, self.name, self._geometry) for lease in kept if lease.ring == self.name]
        abandoned = self.driver.execute(recovery.abandon(self._geometry, rank, stay))
        self._wake()
        self._bury(abandoned.removed)

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is still its holder's."""
        held = held_of(lease, self.name, self._geometry)
        return self.driver.execute(recovery.states(self._geometry))[held.slot] == held.word

    def slots(self) -> list[SlotState]:
        """Every slot, by index."""
        found = self.driver.execute(recovery.snapshot(self._geometry))
        return [
            SlotState(slot, *state, None if payload is None else dispatch_in(payload))
            for slot, (state, payload) in enumerate(found)
        ]

    def stats(self) -> RingStats:
        """How full the ring is, and counters since the start."""
        states = self.driver.execute(recovery.states(self._geometry))
        kinds = [state.kind for state in states]
        return RingStats(
            ready_count=kinds.count(Kind.READY),
            leased_count=kinds.count(Kind.LEASED),
            waiting_count=self._waiters.count,
            redelivered_count=self.driver.execute(recovery.redelivered_count()),
            open_count=sum(state.kind is Kind.READY and not state.rank for state in states),
        )

    async def _take(self, rank: int) -> Claimed | None:
        self._check_alive(rank, least=1)
        claim = self.driver.execute(protocol.claim(self._geometry, rank, self._choose))
        return None if claim is None else Claimed.of(claim, self.name)

    def _reap(self, rank: int) -> recovery.Reaped:
        reaped = self.driver.execute(recovery.reap(self._geometry, rank, self._attempts_max))
        self._wake()
        return reaped

    def _remove(self, rank: int) -> None:
        self._bury(self._reap(rank).removed)

    def _bury(self, removals: Iterable[recovery.Removal]) -> None:
        for removal in removals:
            self._on_dead_letter(Removed.of(removal, self.name))

    def _wake(self) -> None:
        self._waiters.wake()
        self._on_ready()

    def _check_alive(self, rank: int, least: int = 0) -> None:
        check_rank("rank", rank, least)
        if rank in self._fenced:
            raise errors.Fenced(f"rank {rank} was declared dead in epoch {self.epoch}; register again")
