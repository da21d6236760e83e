"""A seeded world in which the ring's real programs are interleaved at every operation, and die or sleep anywhere.

Three producers, three consumers, one controller. One random number generator decides everything, so a seed is a
schedule: `python -m tests.sim.world SEED` replays one and prints every operation.

Death: the process performs no further operation. Sleep: it performs none until later, when the controller may have
taken it for dead. The controller fences a suspect (further operations in its name raise Fenced), then reaps it. An
owner that wakes up fenced still tries to ack what it held, past the fence: the compare-and-swap alone must refuse.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.sim.ledger import Ledger, Violation
from triptych import errors
from triptych.rings import attach, layout, protocol, recovery
from triptych.rings.layout import Geometry, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import CompareSwap, Operation, Program, Write

GEOMETRY = Geometry(slot_count=3, payload_bytes_max=8)
"""Few slots, so that they are fought for, run out and are used again."""
PRODUCERS, CONSUMERS, MESSAGES_EACH = 3, 3, 2
ATTEMPTS_MAX = 3
RESPAWNS_MAX = 6
"""Consumers that may follow dead ones, so that a message that kills reaches its cap."""
STEPS_MAX = 3000
"""Operations of one schedule; a hundred or two are usual, so more is a livelock."""
FATE_STEP_MAX = 16
"""Up to which of its operations a process may be struck: past the longest run of one message."""
IDLE = None

Step = Operation | None
Script = Generator[Step, Any, Any]


class Programs(NamedTuple):
    """The programs under test; a planted bug replaces one."""

    publish: Callable[..., Program[int]] = protocol.publish
    claim: Callable[..., Program[protocol.Claim | None]] = protocol.claim
    ack: Callable[..., Program[None]] = protocol.ack
    nack: Callable[..., Program[bool]] = protocol.nack
    reap: Callable[..., Program[recovery.Reaped]] = recovery.reap
    is_fenced_first: bool = True


class Fate(NamedTuple):
    """When and how a process is struck."""

    step: int
    is_deadly: bool


@dataclass
class Process:
    """One running script under one rank."""

    rank: int
    script: Script
    fate: Fate | None
    next_step: Step = IDLE
    performed_count: int = 0
    idle_since: int = -1
    is_over: bool = False
    is_struck: bool = False
    is_past_fence: bool = False
    wake_at: int | None = None
    held: list[protocol.Claim] = field(default_factory=list)
    adopted: list[protocol.Claim] = field(default_factory=list)


class World:
    """Runs one schedule. `fates` strikes chosen ranks; without it the seed decides."""

    def __init__(
        self,
        seed: int,
        programs: Programs = Programs(),  # noqa: B008  (immutable)
        *,
        is_table_checked: bool = True,
        fates: dict[int, Fate] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.programs = programs
        self.ledger = Ledger(ATTEMPTS_MAX)
        self.memory = MemoryDriver(memoryview(bytearray(GEOMETRY.ring_bytes)))
        self.memory.execute(attach.format_ring(GEOMETRY, 1, epoch=seed))
        if seed % 4 == 0:  # tickets wrap in the middle of the schedule
            start = layout.TICKET_COUNT - 1 - seed // 4 % 8
            self.memory.perform(Write(layout.TICKET_OFFSET, layout.word_bytes(start)))
        self.is_table_checked = is_table_checked
        self.trace = trace
        self.version = 0
        self.step_count = 0
        self.respawn_count = 0
        self.suspects: list[int] = []
        self.poison = b"p1m0" if self.random.random() < 0.1 else b""
        self.processes: dict[int, Process] = {}
        self.fates = self._draw_fates() if fates is None else fates
        for rank in range(1, PRODUCERS + 1):
            self._start(rank, self._producer)
        for rank in range(PRODUCERS + 1, PRODUCERS + CONSUMERS + 1):
            self._start(rank, self._consumer)
        self._start(0, self._controller)

    def run(self) -> Ledger:
        """Run the schedule to its end and check everything; raise Violation with the seed."""
        try:
            self._run_all()
            self._drain()
            self.ledger.on_end()
        except (Violation, errors.LeaseLost) as violation:
            raise Violation(f"seed {self.seed}: {violation} (python -m tests.sim.world {self.seed})") from None
        return self.ledger

    # --- the scheduler

    def _draw_fates(self) -> dict[int, Fate]:
        draw = self.random
        struck = draw.sample(range(1, PRODUCERS + CONSUMERS + 1), draw.choice((0, 1, 1, 2, 3)))
        return {rank: Fate(draw.randrange(FATE_STEP_MAX), draw.random() < 0.5) for rank in struck}

    def _start(self, rank: int, make: Callable[[Process], Script]) -> None:
        process = Process(rank, iter(()), self.fates.get(rank))  # type: ignore[arg-type]
        process.script = make(process)
        self.processes[rank] = process
        self._resume(process, None)

    def _run_all(self) -> None:
        while True:
            ready = [process for process in self.processes.values() if self._is_runnable(process)]
            if not ready:
                sleepers = [process for process in self.processes.values() if process.wake_at is not None]
                if not sleepers:
                    return
                ready = [min(sleepers, key=lambda process: process.wake_at or 0)]
                ready[0].wake_at = None
            self._advance(ready[int(self.random.random() * len(ready))])

    def _is_runnable(self, process: Process) -> bool:
        if process.is_over:
            return False
        if process.wake_at is not None:
            if self.step_count < process.wake_at:
                return False
            process.wake_at = None
        if process.rank == 0 and not self.suspects and process.next_step is IDLE:
            return False
        return process.next_step is not IDLE or process.idle_since != self.version

    def _advance(self, process: Process) -> None:
        """Let a process perform its next operation, unless it is struck before."""
        self.step_count += 1
        if self.step_count > STEPS_MAX:
            raise Violation("livelock")
        if process.fate is not None and process.performed_count >= process.fate.step:
            self._strike(process, process.fate)
            return
        operation = process.next_step
        if operation is IDLE:
            self._resume(process, None)
        elif process.rank in self.ledger.fenced and not process.is_past_fence and self.programs.is_fenced_first:
            self._resume(process, errors.Fenced("cut off"))
        else:
            process.performed_count += 1
            self._resume(process, self._perform(process, operation))

    def _strike(self, process: Process, fate: Fate) -> None:
        process.fate = None
        process.is_struck = True
        self.suspects.append(process.rank)
        if fate.is_deadly:
            process.is_over = True
        else:
            process.wake_at = self.step_count + self.random.randrange(1, 60)
        self._say(process, "dies" if fate.is_deadly else f"sleeps until step {process.wake_at}")

    def _perform(self, process: Process, operation: Operation) -> Any:
        result = self.memory.perform(operation)
        if self.trace is not None:
            self._say(process, describe(operation, result))
        if isinstance(operation, CompareSwap) and result == operation.expected:
            self.version += 1
            if self.is_table_checked:
                self.ledger.on_change(operation.expected, operation.replacement)
        elif isinstance(operation, Write) and layout.STATES_OFFSET <= operation.offset < layout.SLOTS_OFFSET:
            self.version += 1
            if self.is_table_checked:
                raise Violation(f"a state word was written without compare-and-swap: {operation}")
        return result

    def _resume(self, process: Process, result: Any) -> None:
        try:
            if isinstance(result, errors.Fenced):
                process.next_step = process.script.throw(result)
            else:
                process.next_step = process.script.send(result)
        except StopIteration:
            process.is_over = True

    def _say(self, process: Process, what: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.step_count:4} rank {process.rank}: {what}")

    # --- what the processes do

    def _choose(self, count: int) -> int:
        return int(self.random.random() * count)

    def _producer(self, process: Process) -> Script:
        try:
            for number in range(MESSAGES_EACH):
                message = b"p%dm%d" % (process.rank, number)
                target = PRODUCERS + 1 + self._choose(CONSUMERS) if self._choose(6) == 0 else 0
                while not (yield from self._publish_once(process, message, target)):
                    yield IDLE
        except errors.Fenced:
            return

    def _publish_once(self, process: Process, message: bytes, target: int) -> Generator[Step, Any, bool]:
        process.idle_since = self.version
        self.ledger.begun.add(message)
        try:
            yield from interleave(self.programs.publish(GEOMETRY, message, process.rank, target, self._choose))
        except errors.RingFull:
            return False
        except errors.LeaseLost:
            self.ledger.on_lease_lost(process.rank)
            return True
        self.ledger.on_published(message)
        return True

    def _consumer(self, process: Process) -> Script:
        try:
            while True:
                process.idle_since = self.version
                if process.adopted:
                    claim = process.adopted.pop()
                else:
                    claim = yield from interleave(self.programs.claim(GEOMETRY, process.rank, self._choose))
                if claim is None:
                    yield IDLE
                    continue
                process.held = [claim]
                yield from self._work(process, claim)
                process.held = []
        except errors.LeaseLost:
            self.ledger.on_lease_lost(process.rank)
        except errors.Fenced:
            yield from self._ack_late(process)

    def _work(self, process: Process, claim: protocol.Claim) -> Script:
        """Hold a lease for a while, then end it. A poisonous message kills its holder."""
        if process.rank not in self.ledger.fenced:
            self.ledger.on_claimed(claim)
        if claim.payload == self.poison:
            process.fate = Fate(0, is_deadly=True)
        for _ in range(self._choose(4)):
            process.idle_since = -1
            yield IDLE
        if self._choose(6) == 0 and claim.held.attempt + 1 < ATTEMPTS_MAX:
            yield from interleave(self.programs.nack(GEOMETRY, claim.held))
            self.ledger.on_nacked(claim.held, claim.payload)
        else:
            yield from interleave(self.programs.ack(GEOMETRY, claim.held))
            self.ledger.on_acked(claim.held, claim.payload)

    def _ack_late(self, process: Process) -> Script:
        """Woken up after being fenced: try to end the old lease all the same."""
        process.is_past_fence = True
        for claim in process.held:
            try:
                yield from interleave(self.programs.ack(GEOMETRY, claim.held))
            except errors.LeaseLost:
                self.ledger.on_lease_lost(process.rank)
            else:
                self.ledger.on_acked(claim.held, claim.payload)

    def _controller(self, process: Process) -> Script:
        if self.seed % 5 == 0:
            yield from self._adopt(PRODUCERS + 1)
        while True:
            process.idle_since = -1
            yield IDLE
            if self.suspects:
                suspect = self.suspects.pop(self._choose(len(self.suspects)))
                yield from self._reap(suspect)
                if suspect > PRODUCERS and self.respawn_count < RESPAWNS_MAX:
                    self.respawn_count += 1
                    self._start(PRODUCERS + CONSUMERS + self.respawn_count, self._consumer)

    def _adopt(self, rank: int) -> Script:
        """As after a restart: a consumer is already working on something."""
        message = b"adopted"
        self.ledger.begun.add(message)
        try:
            held = yield from interleave(protocol.adopt(GEOMETRY, message, rank, 0, self._choose))
        except errors.RingFull:
            return
        self.ledger.on_published(message)
        self.processes[rank].adopted.append(protocol.Claim(held, message))

    def _reap(self, rank: int) -> Script:
        self.ledger.on_fenced(rank)
        reaped = yield from interleave(self.programs.reap(GEOMETRY, rank, ATTEMPTS_MAX))
        self.ledger.on_reaped(reaped)

    # --- the end

    def _drain(self) -> None:
        """Everybody has left: what is in the ring comes out by reaping and one last consumer, and slots are free."""
        execute = self.memory.execute
        for rank in [rank for rank in self.processes if rank > 0]:
            self.ledger.on_fenced(rank)
            self.ledger.on_reaped(execute(self.programs.reap(GEOMETRY, rank, ATTEMPTS_MAX)))
        last = layout.RANK_MAX
        for _ in range(PRODUCERS * MESSAGES_EACH + 1):
            claim = execute(self.programs.claim(GEOMETRY, last, self._choose))
            if claim is None:
                break
            self.ledger.on_claimed(claim)
            execute(self.programs.ack(GEOMETRY, claim.held))
            self.ledger.on_acked(claim.held, claim.payload)
        stuck = [view for view in execute(recovery.states(GEOMETRY)) if view.pack() != layout.FREE_WORD]
        if stuck:
            raise Violation(f"wedged: {stuck}")
        if self.seed % 8 == 0:
            self._use_again(layout.RANK_MAX)

    def _use_again(self, rank: int) -> None:
        """The ring still takes as many entries as it has slots, and gives them out in order."""
        execute = self.memory.execute
        sent = [b"again%d" % number for number in range(GEOMETRY.slot_count)]
        for message in sent:
            execute(self.programs.publish(GEOMETRY, message, rank, 0, self._choose))
        try:
            execute(self.programs.publish(GEOMETRY, b"toomany", rank, 0, self._choose))
        except errors.RingFull:
            pass
        else:
            raise Violation("a full ring took one more")
        claims = [execute(self.programs.claim(GEOMETRY, rank, self._choose)) for _ in sent]
        if [claim and claim.payload for claim in claims] != sent:
            raise Violation(f"out of order: {claims}")


def describe(operation: Operation, result: Any) -> str:
    """An operation for people."""
    if not isinstance(operation, CompareSwap):
        return f"{type(operation).__name__} at {operation.offset} {result if isinstance(result, int) else ''}"
    old, new, seen = (StateWord.unpack(word) for word in (operation.expected, operation.replacement, result))
    slot = (operation.offset - layout.STATES_OFFSET) // layout.WORD_BYTES
    return f"slot {slot}: {old} -> {new}" + ("" if seen == old else f" REFUSED, is {seen}")


def interleave(program: Program[Any]) -> Generator[Step, Any, Any]:
    """Yield a program's operations one by one, out of their chains."""
    try:
        chain = next(program)
        while True:
            results = []
            for operation in chain:
                results.append((yield operation))
            chain = program.send(tuple(results))
    except StopIteration as stop:
        return stop.value


if __name__ == "__main__":
    World(int(sys.argv[1]), trace=print).run()
