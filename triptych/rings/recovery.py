"""The controller's programs: clean up after a worker that died or was cut off, and look at a whole ring."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import NamedTuple

from triptych.rings import layout
from triptych.rings.layout import Geometry, Kind, Slot, StateWord
from triptych.rings.program import CompareSwap, Program, Read
from triptych.rings.protocol import Claim, Held, advance, read_words


class Removal(NamedTuple):
    """An entry that was removed from the ring: now only the controller has it."""

    held: Held
    payload: bytes
    reason: str


class Reaped(NamedTuple):
    """The outcome of a reap: leases before they went back to READY, entries removed, writes abandoned."""

    redelivered: tuple[Claim, ...]
    removed: tuple[Removal, ...]
    abandoned_count: int


PAST_CAP = "attempts"
"""Reason of a removal: delivered as often as is allowed, and never acked. It becomes a dead letter."""
TARGET_DEAD = "target"
"""Reason of a removal: addressed to a dead rank."""
WITHDRAWN = "withdrawn"
"""Reason of a removal: the controller wanted it back."""


def reap(geometry: Geometry, dead: int, attempts_max: int) -> Program[Reaped]:
    """Clean up after rank `dead`. For the controller only, and only after `dead` was fenced.

    Its half-written slots become FREE; its leases go back to READY with the next attempt or, at `attempts_max`
    deliveries, out of the ring; entries that only it could claim, and parked ones, go out of the ring too.
    Running it again is harmless, but only its return value has the removed entries: a controller whose reap fails
    half-way must not go on with this ring. With `dead` 0 it only removes parked entries.
    """
    assert 1 <= attempts_max <= layout.ATTEMPT_MAX
    line_for = functools.partial(_line_for, dead, attempts_max)
    return (yield from _move(geometry, lambda state: _is_concerned(state, dead), line_for))


def abandon(geometry: Geometry, rank: int, kept: Collection[Held]) -> Program[Reaped]:
    """Clean up after a broken connection of `rank`, which lives. For the controller, and only after that connection
    was torn down.

    Its half-written slots become FREE, and leases that it doesn't know of (their answer was lost) go back to READY.
    The leases that it knows of, `kept`, stay. No entry is removed for its attempts (except at the counter's end), but
    a lost answer is an attempt, which a later reap counts. As with `reap`, failing half-way ends the ring.
    """
    assert rank != 0
    stay = {held.word for held in kept}

    def is_half_done(state: StateWord) -> bool:
        return state.rank == rank and state.kind in (Kind.WRITING, Kind.LEASED) and state not in stay

    return (yield from _move(geometry, is_half_done, functools.partial(_line_for, 0, layout.ATTEMPT_MAX)))


def withdraw(geometry: Geometry, is_unwanted: Callable[[bytes], bool]) -> Program[tuple[Removal, ...]]:
    """Remove the waiting entries whose payload `is_unwanted`, and return them. For the controller.

    An entry that is claimed meanwhile stays with its claimer. As with `reap`, failing half-way ends the ring.
    """

    def line_for(state: StateWord, content: Slot) -> tuple[str, str]:
        return ("refuse", WITHDRAWN) if is_unwanted(content.payload) else ("", "")

    return (yield from _move(geometry, lambda state: state.kind is Kind.READY, line_for)).removed


def _move(
    geometry: Geometry,
    is_concerned: Callable[[StateWord], bool],
    line_for: Callable[[StateWord, Slot], tuple[str, str]],
) -> Program[Reaped]:
    """Move the slots concerned on, each along its line of the table; where that is empty, the slot stays as it is.

    `line_for` also gives the reason where an entry leaves the ring.
    """
    found = yield from states(geometry)
    concerned = [(slot, state) for slot, state in enumerate(found) if is_concerned(state)]
    if not concerned:
        return Reaped((), (), 0)
    data = yield tuple(Read(geometry.slot_offset(slot), geometry.slot_bytes) for slot, _ in concerned)
    moves = []
    for (slot, state), one in zip(concerned, data, strict=True):
        content = Slot.unpack(one)
        line, reason = line_for(state, content)
        if line:
            moves.append((slot, state, content, line, reason))
    if not moves:
        return Reaped((), (), 0)
    seen = yield tuple(
        CompareSwap(geometry.state_offset(slot), state.pack(), advance(line, state, content.target).pack())
        for slot, state, content, line, _ in moves
    )
    redelivered: list[Claim] = []
    removed: list[Removal] = []
    abandoned_count = 0
    for (slot, state, content, line, reason), before in zip(moves, seen, strict=True):
        held = Held(slot, state.ticket, state.attempt, state.rank)
        if before != state.pack():
            continue  # an ack or a claim arrived first
        if line == "abandon":
            abandoned_count += 1
        elif line == "redeliver":
            redelivered.append(Claim(held, content.payload))
        else:
            removed.append(Removal(held, content.payload, reason))
    return Reaped(tuple(redelivered), tuple(removed), abandoned_count)


def _is_concerned(state: StateWord, dead: int) -> bool:
    if state.kind is Kind.LEASED:
        return state.rank in (0, dead)
    return dead != 0 and state.kind is not Kind.FREE and state.rank == dead


def _line_for(dead: int, attempts_max: int, state: StateWord, content: Slot) -> tuple[str, str]:
    """The table's line for a dead rank's slot, and the reason where the entry leaves the ring."""
    if state.kind is Kind.WRITING:
        return "abandon", ""
    if state.kind is Kind.READY:
        return "refuse", TARGET_DEAD
    if state.rank == 0 or state.attempt + 1 >= attempts_max:
        return "drop", PAST_CAP
    if dead and content.target == dead:
        return "drop", TARGET_DEAD
    return "redeliver", ""


def states(geometry: Geometry) -> Program[list[StateWord]]:
    """Every slot's state, by index."""
    words = yield from read_words(geometry)
    return [StateWord.unpack(word) for word in words]


def redelivered_count() -> Program[int]:
    """How many claims since the ring was made were of entries delivered before."""
    (counter,) = yield (Read(layout.REDELIVERED_OFFSET, layout.WORD_BYTES),)
    return layout.word_at(counter)


def snapshot(geometry: Geometry) -> Program[list[tuple[StateWord, bytes | None]]]:
    """Every slot's state and payload, by index. Each is consistent, but they aren't of the same moment.

    The payload is None if the slot has none, or if the slot changed meanwhile.
    """
    before = yield from states(geometry)
    filled = [slot for slot, state in enumerate(before) if state.kind in (Kind.READY, Kind.LEASED)]
    if not filled:
        return [(state, None) for state in before]
    contents = yield tuple(Read(geometry.slot_offset(slot), geometry.slot_bytes) for slot in filled)
    after = yield from states(geometry)
    payloads = {slot: Slot.unpack(data).payload for slot, data in zip(filled, contents, strict=True)}
    return [(state, payloads.get(slot) if after[slot] == state else None) for slot, state in enumerate(before)]
