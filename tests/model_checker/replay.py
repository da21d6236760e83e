"""Repeats the model's steps with the real programs, operation by operation, on real memory.

A step of the model is a line `@ RANK WHAT NUMBERS`. For each the program that runs under that rank must yield the same
kind of operation on the same slot, with the same words, and get the same answer; and where the model's call returns or
raises, so must the program. What the programs choose by lot they are told from the trace.

The model's numbers are translated by a `Scale`. A read of the whole ring is put together from the model's reads of its
words, a slot's read or write from its two halves. What the model leaves out is passed over, see `Call`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from tests.model_checker.call import Call, Difference
from tests.model_checker.scale import Scale
from tests.sim.scripts import Programs
from triptych import errors
from triptych.rings import attach, layout, protocol
from triptych.rings.layout import SLOT_HEADER_BYTES, WORD_BYTES, Kind, Slot, StateWord
from triptych.rings.memory import MemoryDriver
from triptych.rings.program import CompareSwap, FetchAdd, Program, Read, Write

FIRST_CONSUMER = 3
"""The rank whose work is adopted, in ring.pml."""
CONTEXT_LINES = 15
"""Steps shown before one that differs."""

UNDOING = ("reap", "abandon")
DRIVER_ERRORS = ("Fenced", "RingUnreachable")
"""Errors that a driver may raise at any step of a program."""


class Replay:
    """One schedule. `programs` are those under test."""

    def __init__(self, scale: Scale, programs: Programs = Programs()) -> None:  # noqa: B008  (immutable)
        self.scale, self.programs, self.geometry = scale, programs, scale.geometry
        self.memory = MemoryDriver(memoryview(bytearray(self.geometry.ring_bytes)))
        self.memory.execute(attach.format_ring(self.geometry, 1, epoch=1))
        self.memory.perform(Write(layout.TICKET_OFFSET, layout.word_bytes(scale.ticket(1))))
        self.calls: dict[int, Call] = {}
        self.held: dict[int, protocol.Held] = {}
        self.choices: dict[int, tuple[int, int]] = {}
        """Index and count of what each rank last chose among."""
        self.seen: Counter[str] = Counter()
        """How often each thing happened: `line NAME` of the table, `NAME lost` of a race, `NAME raised ERROR`."""
        self.transitions: set[tuple[Kind, Kind, int]] = set()

    def run(self, trace: Sequence[str]) -> None:
        """Replay a trace from its beginning. Raises Difference with the step."""
        for index, line in enumerate(trace):
            _, rank, what, *words = line.split()
            numbers = [int(word) for word in words if word.isdigit()]
            try:
                getattr(self, f"_on_{what}")(int(rank), words, numbers)
            except (AssertionError, ValueError, RuntimeError, StopIteration, errors.TriptychError) as error:
                context = "\n".join(trace[max(0, index + 1 - CONTEXT_LINES) : index + 1])
                raise Difference(f"{type(error).__name__}: {error}, at step {index}, the last of\n{context}") from error

    # --- calls

    def _on_calls(self, rank: int, words: list[str], numbers: list[int]) -> None:
        self.calls[rank] = Call(words[0], getattr(self, f"_make_{words[0]}")(rank, *numbers), self.memory)

    def _make_publish(self, rank: int, message: int, target: int) -> Program[Any]:
        payload, choose = self.scale.payload(message), partial(self._choose, rank)
        if rank == 0:
            return protocol.adopt(self.geometry, payload, FIRST_CONSUMER, target, choose)
        return self.programs.publish(self.geometry, payload, rank, target, choose)

    def _make_claim(self, rank: int) -> Program[Any]:
        return self.programs.claim(self.geometry, rank, partial(self._choose, rank))

    def _make_ack(self, rank: int) -> Program[Any]:
        return self.programs.ack(self.geometry, self.held[rank])

    def _make_nack(self, rank: int) -> Program[Any]:
        return self.programs.nack(self.geometry, self.held[rank])

    def _make_reap(self, _rank: int, dead: int) -> Program[Any]:
        return self.programs.reap(self.geometry, dead, self.scale.attempts_max)

    def _make_abandon(self, _rank: int, cut: int, kept: int) -> Program[Any]:
        return self.programs.abandon(self.geometry, cut, [self._held_of(0, kept)] if kept else [])

    def _on_chooses(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        index, count = self.choices[rank] = (numbers[0], numbers[1])
        assert index < count
        self.seen["contended choice"] += self.calls[rank].name == "claim" and count > 1

    def _choose(self, rank: int, count: int) -> int:
        index, count_in_model = self.choices[rank]
        _same(count, count_in_model, "the number of slots to choose among")
        return index

    # --- what becomes of them

    def _on_returns(self, rank: int, words: list[str], numbers: list[int]) -> None:
        call = self.calls.pop(rank)
        self.seen[f"{call.name} returned"] += 1
        returned = call.finish()
        if call.name in UNDOING:
            _same(returned, call.reaped(self.scale.attempts_max), "the answer of a reap")
        elif call.name == "publish":
            ticket = returned.ticket if rank == 0 else returned
            _same(ticket, self.scale.ticket(numbers[0]), "the ticket")
        elif call.name == "claim" and words == ["nothing"]:
            _same(returned, None, "the claim")
        elif call.name == "claim":
            slot, word, message = numbers
            self.held[rank] = self._held_of(slot, word)
            _same(returned, protocol.Claim(self.held[rank], self.scale.payload(message)), "the claim")
        else:
            is_parked = self.held.pop(rank).attempt == layout.ATTEMPT_MAX
            _same(returned, None if call.name == "ack" else not is_parked, "the answer")

    def _on_raises(self, rank: int, words: list[str], _numbers: list[int]) -> None:
        call, name = self.calls.pop(rank, None), words[0]
        if name in DRIVER_ERRORS:
            self.seen[name] += 1
            if call is not None:
                call.close()
            return
        assert call is not None
        self.seen[f"{call.name} raised {name}"] += 1
        try:
            returned = call.finish()
        except (errors.RingFull, errors.LeaseLost) as error:
            _same(type(error).__name__, name, "the error")
        else:
            raise Difference(f"{call.name} returned {returned}, the model raised {name}")

    def _on_dies(self, rank: int, _words: list[str], _numbers: list[int]) -> None:
        self.seen["death"] += 1
        self.calls.pop(rank, None)

    def _on_stops(self, rank: int, _words: list[str], _numbers: list[int]) -> None:
        self.seen["stop"] += 1
        self.calls.pop(rank)

    def _on_resumes(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        """It hears of the lease that was adopted for it, if any was."""
        slot, word, _message = numbers
        if word != 0:
            self.held[rank] = self._held_of(slot, word)

    def _on_reconnects(self, rank: int, _words: list[str], _numbers: list[int]) -> None:
        assert rank not in self.calls

    def _held_of(self, slot: int, word: int) -> protocol.Held:
        ticket, attempt, rank, _kind = self.scale.word(word)
        return protocol.Held(slot, ticket, attempt, rank)

    # --- operations

    def _on_read_state(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        slot, word = numbers
        call, read = self.calls[rank], Read(self.geometry.state_offset(slot), WORD_BYTES)
        operation, data = call.operation(), self.memory.perform(read)
        _same(layout.word_at(data), self.scale.word(word).pack(), "the word read")
        if operation == read:
            call.answer(data)
        else:
            _same(operation, Read(layout.STATES_OFFSET, self.geometry.states_bytes), "the operation")
            _same(call.part_count, slot, "the word")
            call.answer_part(data, self.geometry.states_bytes)

    def _on_read_header(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        slot, header = numbers
        call = self.calls[rank]
        operation = call.operation()
        assert isinstance(operation, Read), operation
        _same((operation.offset, call.part_count), (self.geometry.slot_offset(slot), 0), "the half slot")
        data = self.memory.perform(Read(operation.offset, SLOT_HEADER_BYTES))
        _same(data, self.scale.header(header), "the header read")
        call.answer_part(data, operation.size_bytes)

    def _on_read_payload(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        slot, message = numbers
        call = self.calls[rank]
        operation = call.operation()
        _same(operation, Read(self.geometry.slot_offset(slot), self.geometry.slot_bytes), "the operation")
        data = self.memory.perform(Read(operation.offset + SLOT_HEADER_BYTES, self.geometry.payload_bytes_max))
        _same(data, self.scale.payload(message), "the payload read")
        call.answer_part(data, self.geometry.slot_bytes)

    def _on_write_header(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        slot, header = numbers
        operation = self.calls[rank].operation()
        assert isinstance(operation, Write), operation
        written = operation.data[:SLOT_HEADER_BYTES]
        _same((operation.offset, written), (self.geometry.slot_offset(slot), self.scale.header(header)), "the header")
        self.memory.perform(Write(operation.offset, written))

    def _on_write_payload(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        slot, message = numbers
        call = self.calls[rank]
        operation = call.operation()
        assert isinstance(operation, Write), operation
        written = operation.data[SLOT_HEADER_BYTES:]
        _same((operation.offset, written), (self.geometry.slot_offset(slot), self.scale.payload(message)), "the rest")
        self.memory.perform(Write(operation.offset + SLOT_HEADER_BYTES, written))
        call.answer(None)

    def _on_fetch_add(self, rank: int, _words: list[str], numbers: list[int]) -> None:
        call = self.calls[rank]
        operation = call.operation()
        _same(operation, FetchAdd(layout.TICKET_OFFSET, 1), "the operation")
        counter = self.memory.perform(operation)
        _same(counter % layout.TICKET_COUNT, self.scale.ticket(numbers[0]), "the ticket drawn")
        call.answer(counter)

    def _on_compare_swap(self, rank: int, words: list[str], numbers: list[int]) -> None:
        line, (slot, *model_words) = words[0], numbers
        call = self.calls[rank]
        before, after, seen = map(self.scale.word, model_words)
        attempt = after.attempt
        if attempt > before.attempt:
            after = after._replace(attempt=before.attempt + 1)  # `_grow` does the rest
        operation = call.operation()
        _same(operation, CompareSwap(self.geometry.state_offset(slot), before.pack(), after.pack()), "the operation")
        word = self.memory.perform(operation)
        _same(word, seen.pack(), "the word found")
        call.answer(word)
        call.has_lost = seen != before
        self.seen[f"{line} lost" if call.has_lost else f"line {line}"] += 1
        if call.has_lost:
            return
        self.transitions.add((before.kind, after.kind, after.attempt - before.attempt if after.kind else 0))
        if call.name in UNDOING:
            content = self.memory.perform(Read(self.geometry.slot_offset(slot), self.geometry.slot_bytes))
            call.note_swap(line, slot, before, Slot.unpack(content).payload)
        self._grow(slot, after, attempt)

    def _grow(self, slot: int, word: StateWord, attempt: int) -> None:
        """Deliver and hand back until the attempt is what the model's stands for: its largest is the counter's here."""
        while word.attempt < attempt:
            leased = protocol.advance("claim", word, word.rank or FIRST_CONSUMER)
            self.memory.perform(CompareSwap(self.geometry.state_offset(slot), word.pack(), leased.pack()))
            held = protocol.Held(slot, leased.ticket, leased.attempt, leased.rank)
            assert self.memory.execute(protocol.nack(self.geometry, held))
            word = protocol.advance("nack", leased, word.rank)


def _same(real: object, model: object, what: str) -> None:
    if real != model:
        raise Difference(f"{what} is {real} in the program, {model} in the model")
