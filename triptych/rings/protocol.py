"""The leased ring's protocol, as pure programs (see `program`): the state machine, and what workers run.

Round trips where nobody interferes are constants below; a test counts them, on far memory by work requests.

EDITORS' RULES
 1. A slot's state changes by compare-and-swap only, and only along a line of `TABLE`; `advance` is the way.
 2. Only the owner of a slot (the rank in WRITING) writes its content; no line leads from READY to WRITING.
 3. A slot leaves FREE with a fresh ticket only, and within a ticket no line leads back: attempt grows, or the slot
    moves on from WRITING to READY to LEASED to LEASED by 0. So no word but FREE's returns before the tickets wrap
    (`layout.TICKET_COUNT`), and a compare-and-swap that succeeds proves that nothing changed since the word was read.
 4. Before a line `by` the controller for another rank, that rank is cut off: its slot write is no compare-and-swap.
 5. A program uses a slot's content only together with a state word that was read *after* it.
 6. Programs never wait, and every loop is bounded. Drivers wait.
 7. After a change, run tests/sim: it interleaves these programs and checks every change against `TABLE`. Change the
    model in docs/model in the same way: tests/model_checker replays its schedules with these programs.

WHY NOTHING IS LOST. A message counts from when `publish` returns. Content is written while the word says
WRITING(t, writer). Only the reaper has another line from that word, and it comes after the fence. So an entry that
becomes READY(t) is whole. From READY a slot gets to FREE only through LEASED and an ack by its holder, or by the
controller, which keeps the content it read.
WHY NOTHING IS DOUBLE. READY -> LEASED is one compare-and-swap on a word that never returns (rule 3), so one of many
claimers wins. The next delivery of the same ticket has a greater attempt, so `(ticket, attempt)` names one delivery,
and an ack, nack or second claim by the older holder compares with a word that is gone: LeaseLost.
WHY NOTHING WEDGES. Slots aren't tied to tickets: a ticket whose drawer died, or found no slot, blocks nobody. Every
state but FREE and READY names a rank, and when that rank dies the reaper moves the slot on. The controller removes a
READY slot for a dead rank.
"""

from __future__ import annotations

from typing import NamedTuple

from triptych import errors
from triptych.rings import layout
from triptych.rings.layout import Geometry, Kind, Slot, StateWord
from triptych.rings.program import Choose, CompareSwap, FetchAdd, Program, Read, Write

CONTENDED_CHOICE = 4
"""A claimer that lost a race takes one of so many oldest: enough to avoid a second race, and still near FIFO."""
LOSSES_MAX = 64
"""Lost races after which a program gives up. Each loss is another's success, so this only bounds the call."""

PUBLISH_ROUND_TRIPS = 4
"""Look, draw a ticket, reserve, fill and let go."""
CLAIM_ROUND_TRIPS = 2
"""Look, take and read."""
EMPTY_CLAIM_ROUND_TRIPS = 1
ACK_ROUND_TRIPS = 1


class Line(NamedTuple):
    """An allowed change of a state word."""

    source: Kind
    target: Kind
    attempt_step: int
    by: str


TABLE: dict[str, Line] = {
    # line            from          to            attempt  by whom, and the new `rank`
    "reserve":   Line(Kind.FREE,    Kind.WRITING, 0, "a publisher with a fresh ticket: its rank"),
    "ready":     Line(Kind.WRITING, Kind.READY,   0, "the same publisher: the target"),
    "adopt":     Line(Kind.WRITING, Kind.LEASED,  0, "the controller for a job that is already running: the runner"),
    "claim":     Line(Kind.READY,   Kind.LEASED,  0, "the target, or anyone where the target is 0: its rank"),
    "ack":       Line(Kind.LEASED,  Kind.FREE,    0, "the holder: 0"),
    "nack":      Line(Kind.LEASED,  Kind.READY,   1, "the holder: the target"),
    "park":      Line(Kind.LEASED,  Kind.LEASED,  0, "the holder whose attempt can't grow: 0, for the controller"),
    "abandon":   Line(Kind.WRITING, Kind.FREE,    0, "the controller for a publisher that is cut off: 0"),
    "redeliver": Line(Kind.LEASED,  Kind.READY,   1, "the controller for a holder that is cut off: the target"),
    "drop":      Line(Kind.LEASED,  Kind.FREE,    0, "the controller past the attempts cap, or where parked: 0"),
    "refuse":    Line(Kind.READY,   Kind.FREE,    0, "the controller, which keeps the content (rank 0)"),
}  # fmt: skip


def advance(line: str, word: StateWord, rank: int = 0, ticket: int | None = None) -> StateWord:
    """The word that follows `word` along a line of the table. A free word keeps nothing of it."""
    source, target, attempt_step, _by = TABLE[line]
    assert word.kind is source, (line, word)
    if target is Kind.FREE:
        return StateWord(0, 0, 0, Kind.FREE)
    return StateWord(word.ticket if ticket is None else ticket, word.attempt + attempt_step, rank, target)


class Held(NamedTuple):
    """A lease: the slot, and the fencing token `(ticket, attempt)` with its holder's rank."""

    slot: int
    ticket: int
    attempt: int
    rank: int

    @property
    def word(self) -> StateWord:
        """The state word of the lease."""
        return StateWord(self.ticket, self.attempt, self.rank, Kind.LEASED)


class Claim(NamedTuple):
    """A lease and its slot's payload."""

    held: Held
    payload: bytes


def publish(geometry: Geometry, payload: bytes, rank: int, target: int, choose: Choose) -> Program[int]:
    """Put `payload` into the ring for `target` (0: anyone), written by `rank`; returns the ticket.

    Raises RingFull; then nothing was done (in a race a ticket may have been drawn, which blocks nobody). Raises
    LeaseLost if `rank` was reaped meanwhile; then nothing was published.
    """
    slot, word = yield from _reserve(geometry, rank, choose)
    yield from _fill(geometry, slot, word, advance("ready", word, target), Slot(word.ticket, target, payload))
    return word.ticket


def adopt(geometry: Geometry, payload: bytes, rank: int, target: int, choose: Choose) -> Program[Held]:
    """Put `payload` into the ring as already leased by `rank`, for the controller (rank 0). Raises RingFull."""
    slot, word = yield from _reserve(geometry, 0, choose)
    yield from _fill(geometry, slot, word, advance("adopt", word, rank), Slot(word.ticket, target, payload))
    return Held(slot, word.ticket, 0, rank)


def _reserve(geometry: Geometry, rank: int, choose: Choose) -> Program[tuple[int, StateWord]]:
    """Find a free slot, draw a ticket, own the slot."""
    words = yield from read_words(geometry)
    ticket: int | None = None
    for _ in range(LOSSES_MAX):
        free = [slot for slot, word in enumerate(words) if word == layout.FREE_WORD]
        if not free:
            break
        if ticket is None:
            (counter,) = yield (FetchAdd(layout.TICKET_OFFSET, 1),)
            ticket = counter % layout.TICKET_COUNT
        slot = free[choose(len(free))]
        reserved = advance("reserve", StateWord.unpack(layout.FREE_WORD), rank, ticket)
        (seen,) = yield (CompareSwap(geometry.state_offset(slot), layout.FREE_WORD, reserved.pack()),)
        if seen == layout.FREE_WORD:
            return slot, reserved
        words[slot] = seen
    raise errors.RingFull(f"no free slot among {geometry.slot_count}")


def _fill(geometry: Geometry, slot: int, word: StateWord, filled: StateWord, content: Slot) -> Program[None]:
    """Write an owned slot, then let it go."""
    assert len(content.payload) <= geometry.payload_bytes_max
    _, seen = yield (
        Write(geometry.slot_offset(slot), content.pack()),
        CompareSwap(geometry.state_offset(slot), word.pack(), filled.pack()),
    )
    if seen != word.pack():
        raise errors.LeaseLost(f"slot {slot} was reaped while ticket {word.ticket} was being written")


def claim(geometry: Geometry, rank: int, choose: Choose) -> Program[Claim | None]:
    """Lease the oldest entry for `rank`; None where there is none now.

    A lost compare-and-swap returns the slot's new word, so the next choice needs no new read. It takes a random one of
    the few oldest. Raises LeaseLost if the lease was reaped before its content was read.
    """
    words = yield from read_words(geometry)
    few = 1
    for _ in range(LOSSES_MAX):
        oldest = _oldest_ready(words, rank, few)
        if not oldest:
            return None
        slot = oldest[choose(len(oldest))]
        ready = StateWord.unpack(words[slot])
        leased = advance("claim", ready, rank)
        seen, content, after = yield (
            CompareSwap(geometry.state_offset(slot), ready.pack(), leased.pack()),
            Read(geometry.slot_offset(slot), geometry.slot_bytes),
            Read(geometry.state_offset(slot), layout.WORD_BYTES),
        )
        if seen == words[slot]:
            found = Slot.unpack(content)
            if layout.word_at(after) != leased.pack() or found.ticket != ready.ticket:
                raise errors.LeaseLost(f"ticket {ready.ticket} was reaped while it was being claimed")
            if ready.attempt:
                yield (FetchAdd(layout.REDELIVERED_OFFSET, 1),)
            return Claim(Held(slot, leased.ticket, leased.attempt, rank), found.payload)
        words[slot] = seen
        few = CONTENDED_CHOICE
    return None


def _oldest_ready(words: list[int], rank: int, few: int) -> list[int]:
    """Slots of the `few` oldest entries that `rank` may claim, oldest first."""
    tickets = [layout.claimable_ticket(word, rank) for word in words]
    ready = [(ticket, slot) for slot, ticket in enumerate(tickets) if ticket is not None]
    if not ready:
        return []
    reference = ready[0][0]
    aged = sorted((layout.ticket_after(reference, ticket), slot) for ticket, slot in ready)
    return [slot for _, slot in aged[:few]]


def ack(geometry: Geometry, held: Held) -> Program[None]:
    """End a lease: the work is done. Raises LeaseLost."""
    yield from _leave(geometry, held, advance("ack", held.word))


def nack(geometry: Geometry, held: Held) -> Program[bool]:
    """Hand a lease back for another attempt, to the same target; returns whether it is READY again.

    A lease whose attempt can't grow is parked instead: leased by rank 0, for the next reap. (A wrapped attempt would
    bring an old token back.) Raises LeaseLost.
    """
    if held.attempt == layout.ATTEMPT_MAX:
        yield from _leave(geometry, held, advance("park", held.word))
        return False
    (content,) = yield (Read(geometry.slot_offset(held.slot), layout.SLOT_HEADER_BYTES),)
    yield from _leave(geometry, held, advance("nack", held.word, Slot.unpack(content).target))
    return True


def _leave(geometry: Geometry, held: Held, following: StateWord) -> Program[None]:
    word = held.word.pack()
    (seen,) = yield (CompareSwap(geometry.state_offset(held.slot), word, following.pack()),)
    if seen != word:
        raise errors.LeaseLost(f"ticket {held.ticket}, attempt {held.attempt} is no longer held by rank {held.rank}")


def read_words(geometry: Geometry) -> Program[list[int]]:
    """Every state word, packed, by index."""
    (states,) = yield (Read(layout.STATES_OFFSET, geometry.states_bytes),)
    return geometry.words(states)
