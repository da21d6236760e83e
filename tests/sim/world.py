"""A seeded world in which the ring's real programs are interleaved at every operation, and die or sleep anywhere.

Three producers, three consumers, one controller. One random number generator decides everything, so a seed is a
schedule: `python -m tests.sim.world SEED` replays one and prints every operation.

Death: the process performs no further operation. Sleep: it performs none until later, when the controller may have
taken it for dead. Cut: its connection breaks, with the operation under way performed or not, and it doesn't know which;
the controller undoes what was half done before the process may go on.

The controller fences a suspect (further operations in its name raise Fenced), then reaps it. An owner that wakes up
fenced still tries to ack what it held, past the fence: the compare-and-swap alone must refuse.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from tests.sim import scripts
from tests.sim.ledger import Ledger, Violation
from tests.sim.scripts import (
    ATTEMPTS_MAX,
    CONSUMERS,
    GEOMETRY,
    IDLE,
    MESSAGES_EACH,
    PRODUCERS,
    Fate,
    Process,
    Programs,
    Script,
)
from triptych import errors
from triptych.rings import attach, layout, recovery
from triptych.rings.layout import Kind, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import CompareSwap, Operation, Write

STEPS_MAX = 3000
"""Operations of one schedule; a hundred or two are usual, so more is a livelock."""
KINDS_OF_FATE = ((True, False), (False, False), (False, True))
"""Death, sleep, a cut."""
FATE_STEP_MAX = 16
"""Up to which of its operations a process may be struck: past the longest run of one message."""


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
        self.cut_off: list[Process] = []
        self.poison = b"p1m0" if self.random.random() < 0.1 else b""
        self.processes: dict[int, Process] = {}
        self.fates = self._draw_fates() if fates is None else fates
        for rank in range(1, PRODUCERS + 1):
            self.start(rank, scripts.producer)
        for rank in range(PRODUCERS + 1, PRODUCERS + CONSUMERS + 1):
            self.start(rank, scripts.consumer)
        self.start(0, scripts.controller)

    def run(self) -> Ledger:
        """Run the schedule to its end and check everything; raise Violation with the seed."""
        try:
            self._run_all()
            self._check_nobody_starves()
            self._drain()
            self.ledger.on_end()
        except (Violation, errors.LeaseLost) as violation:
            raise Violation(f"seed {self.seed}: {violation} (python -m tests.sim.world {self.seed})") from None
        return self.ledger

    # --- the scheduler

    def _draw_fates(self) -> dict[int, Fate]:
        draw = self.random
        struck = draw.sample(range(1, PRODUCERS + CONSUMERS + 1), draw.choice((0, 1, 1, 2, 3)))
        return {rank: Fate(draw.randrange(FATE_STEP_MAX), *draw.choice(KINDS_OF_FATE)) for rank in struck}

    def choose(self, count: int) -> int:
        """A number below `count`; much faster than `randrange`."""
        return int(self.random.random() * count)

    def start(self, rank: int, make: Callable[[World, Process], Script]) -> None:
        """Start a process."""
        process = Process(rank, iter(()), self.fates.get(rank))  # type: ignore[arg-type]
        process.script = make(self, process)
        self.processes[rank] = process
        self._resume(process, None)

    def _run_all(self) -> None:
        while True:
            ready = [
                process for process in self.processes.values() if not process.is_over and self._is_runnable(process)
            ]
            if not ready:
                sleepers = [process for process in self.processes.values() if process.wake_at is not None]
                if not sleepers:
                    return
                ready = [min(sleepers, key=lambda process: process.wake_at or 0)]
                ready[0].wake_at = None
            self._advance(ready[int(self.random.random() * len(ready))])

    def _is_runnable(self, process: Process) -> bool:
        if process.wake_at is not None:
            if self.step_count < process.wake_at:
                return False
            process.wake_at = None
        if process.is_cut_off or (
            process.rank == 0 and not self.suspects and not self.cut_off and process.next_step is IDLE
        ):
            return False
        return process.next_step is not IDLE or process.idle_since != self.version

    def _advance(self, process: Process) -> None:
        """Let a process perform its next operation, unless it is struck before."""
        self.step_count += 1
        if self.step_count > STEPS_MAX:
            raise Violation("livelock")
        operation, fate = process.next_step, process.fate
        if fate is not None and process.performed_count >= fate.step and not (fate.is_cut and operation is IDLE):
            self._strike(process, fate)
            return
        if operation is IDLE:
            self._resume(process, None)
        elif process.rank in self.ledger.fenced and not process.is_past_fence and self.programs.is_fenced_first:
            self._resume(process, errors.Fenced("cut off"))
        else:
            process.performed_count += 1
            self._resume(process, self._perform(process, operation))

    def _strike(self, process: Process, fate: Fate) -> None:
        process.fate = None
        if fate.is_cut:
            self._cut(process)
            return
        process.is_struck_down = True
        self.suspects.append(process.rank)
        if fate.is_deadly:
            process.is_over = True
        else:
            process.wake_at = self.step_count + self.random.randrange(1, 60)
        self._say(process, "dies" if fate.is_deadly else f"sleeps until step {process.wake_at}")

    def _cut(self, process: Process) -> None:
        assert process.next_step is not IDLE
        process.is_cut_off = True
        self.cut_off.append(process)
        self._say(process, "is cut off")
        if self.choose(2):
            self._perform(process, process.next_step)
        self._resume(process, errors.RingUnreachable("cut off"))

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
            if isinstance(result, errors.TriptychError):
                process.next_step = process.script.throw(result)
            else:
                process.next_step = process.script.send(result)
        except StopIteration:
            process.is_over = True

    def _say(self, process: Process, what: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.step_count:4} rank {process.rank}: {what}")

    # --- the end

    def _check_nobody_starves(self) -> None:
        """Everybody idles: then nothing is there that a living one could have claimed, or holds unknowingly."""
        alive = {rank for rank, process in self.processes.items() if rank > PRODUCERS and not process.is_over}
        for state in self.memory.execute(recovery.states(GEOMETRY)):
            if state.kind is Kind.READY and alive and state.rank in {0, *alive}:
                raise Violation(f"{state} waits beside idle consumers {alive}")
            if state.kind in (Kind.WRITING, Kind.LEASED) and not self.processes[state.rank].is_struck_down:
                raise Violation(f"{state} is held by a rank that lives and doesn't know of it")

    def _drain(self) -> None:
        """Everybody has left: what is in the ring comes out by reaping and one last consumer, and slots are free."""
        execute = self.memory.execute
        for rank in [rank for rank in self.processes if rank > 0]:
            self.ledger.on_fenced(rank)
            self.ledger.on_reaped(execute(self.programs.reap(GEOMETRY, rank, ATTEMPTS_MAX)))
        last = layout.RANK_MAX
        for _ in range(PRODUCERS * MESSAGES_EACH + 1):
            claim = execute(self.programs.claim(GEOMETRY, last, self.choose))
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
            execute(self.programs.publish(GEOMETRY, message, rank, 0, self.choose))
        try:
            execute(self.programs.publish(GEOMETRY, b"toomany", rank, 0, self.choose))
        except errors.RingFull:
            pass
        else:
            raise Violation("a full ring took one more")
        claims = [execute(self.programs.claim(GEOMETRY, rank, self.choose)) for _ in sent]
        if [claim and claim.payload for claim in claims] != sent:
            raise Violation(f"out of order: {claims}")


def describe(operation: Operation, result: Any) -> str:
    """An operation for people."""
    if not isinstance(operation, CompareSwap):
        return f"{type(operation).__name__} at {operation.offset} {result if isinstance(result, int) else ''}"
    old, new, seen = (StateWord.unpack(word) for word in (operation.expected, operation.replacement, result))
    slot = (operation.offset - layout.STATES_OFFSET) // layout.WORD_BYTES
    return f"slot {slot}: {old} -> {new}" + ("" if seen == old else f" REFUSED, is {seen}")


if __name__ == "__main__":
    World(int(sys.argv[1]), trace=print).run()
