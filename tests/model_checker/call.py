"""One run of a real program, taken apart into operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.rings import layout
from triptych.rings.layout import Kind, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import Operation, Program, Read
from triptych.rings.protocol import Claim, Held
from triptych.rings.recovery import PAST_CAP, TARGET_DEAD, Reaped, Removal

NOISE = b"\xff"
"""Answer to a read whose answer must not matter."""


class Difference(AssertionError):
    """The real programs did something else than the model."""


class Call:
    """A program that runs under some rank.

    Two kinds of operations the model leaves out, and they are passed over here: those on other words than the model's
    (a counter of statistics), which are performed, and reads that follow a lost compare-and-swap in its chain, whose
    answers mean nothing: the program is given noise for them.
    """

    def __init__(self, name: str, program: Program[Any], memory: MemoryDriver) -> None:
        self.name = name
        self._program, self._memory = program, memory
        self._chain: tuple[Operation, ...] = ()
        self._answers: list[Any] = []
        self._is_begun = False
        self._parts = b""
        self.part_count = 0
        """Parts of the operation under way that have been performed."""
        self.has_lost = False
        """Whether a compare-and-swap of this chain was lost."""
        self._swapped: list[tuple[str, int, StateWord, bytes]] = []

    def operation(self) -> Operation:
        """The operation at which the program is. Raises StopIteration where it returns instead, and what it raises."""
        while not self._pass_over():
            self._resume()
        return self._chain[len(self._answers)]

    def answer(self, value: Any) -> None:
        """The operation was performed; this is its result."""
        self._answers.append(value)
        self._parts, self.part_count = b"", 0

    def answer_part(self, data: bytes, size_bytes: int) -> None:
        """A part of a read of `size_bytes` was performed."""
        self._parts, self.part_count = self._parts + data, self.part_count + 1
        if len(self._parts) == size_bytes:
            self.answer(self._parts)

    def finish(self) -> Any:
        """What the program returns after its last operation. Raises what it raises."""
        try:
            operation = self.operation()
        except StopIteration as stop:
            return stop.value
        raise Difference(f"{self.name} goes on with {operation}")

    def close(self) -> None:
        """The program's process died, or its driver gave up."""
        self._program.close()

    def note_swap(self, line: str, slot: int, before: StateWord, payload: bytes) -> None:
        """A slot's state was swapped along a line of the table."""
        self._swapped.append((line, slot, before, payload))

    def reaped(self, attempts_max: int) -> Reaped:
        """What a reap must answer, after what it has swapped."""
        redelivered, removed, abandoned_count = [], [], 0
        for line, slot, word, payload in self._swapped:
            held = Held(slot, word.ticket, word.attempt, word.rank)
            if line == "abandon":
                abandoned_count += 1
            elif line == "redeliver":
                redelivered.append(Claim(held, payload))
            else:
                is_spent = word.kind is Kind.LEASED and (word.rank == 0 or word.attempt + 1 >= attempts_max)
                removed.append(Removal(held, payload, PAST_CAP if is_spent else TARGET_DEAD))
        return Reaped(tuple(redelivered), tuple(removed), abandoned_count)

    def _resume(self) -> None:
        resume: Callable[[], tuple[Operation, ...]] = (
            (lambda: self._program.send(tuple(self._answers))) if self._is_begun else (lambda: next(self._program))
        )
        self._chain, self._answers, self.has_lost, self._is_begun = resume(), [], False, True

    def _pass_over(self) -> bool:
        """Skip what the model leaves out; whether the chain has an operation left after that."""
        for operation in self._chain[len(self._answers) :]:
            if operation.offset != layout.TICKET_OFFSET and operation.offset < layout.STATES_OFFSET:
                self._answers.append(self._memory.perform(operation))
            elif self.has_lost and isinstance(operation, Read):
                self._answers.append(NOISE * operation.size_bytes)
            else:
                return True
        return False
