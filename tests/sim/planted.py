"""Wrong programs with one mistake each. The simulator must catch every one of them."""

from __future__ import annotations

from collections.abc import Collection

from tests.sim.scripts import Programs
from triptych import errors
from triptych.rings import layout, protocol, recovery
from triptych.rings.layout import Geometry, Kind, Slot, StateWord
from triptych.rings.program import Choose, CompareSwap, FetchAdd, Program, Read, Write


def publish_before_reserve(geometry: Geometry, payload: bytes, rank: int, target: int, choose: Choose) -> Program[int]:
    """Read the counter, write the slot that it names, and only then add: two producers take one slot."""
    (counter,) = yield (Read(layout.TICKET_OFFSET, layout.WORD_BYTES),)
    ticket = layout.word_at(counter) % layout.TICKET_COUNT
    slot = ticket % geometry.slot_count
    (word,) = yield (Read(geometry.state_offset(slot), layout.WORD_BYTES),)
    if layout.word_at(word) != layout.FREE_WORD:
        raise errors.RingFull("the next slot is taken")
    ready = StateWord(ticket, 0, target, Kind.READY)
    yield (
        Write(geometry.slot_offset(slot), Slot(ticket, target, payload).pack()),
        Write(geometry.state_offset(slot), layout.word_bytes(ready.pack())),
        FetchAdd(layout.TICKET_OFFSET, 1),
    )
    return ticket


def ack_blindly(geometry: Geometry, held: protocol.Held) -> Program[None]:
    """Store FREE without looking."""
    yield (Write(geometry.state_offset(held.slot), layout.word_bytes(layout.FREE_WORD)),)


def ack_check_then_store(geometry: Geometry, held: protocol.Held) -> Program[None]:
    """Look, then store FREE: right except when the reaper comes between."""
    (word,) = yield (Read(geometry.state_offset(held.slot), layout.WORD_BYTES),)
    if layout.word_at(word) != held.word.pack():
        raise errors.LeaseLost("seen in time")
    yield from ack_blindly(geometry, held)


def claim_check_then_store(geometry: Geometry, rank: int, choose: Choose) -> Program[protocol.Claim | None]:
    """Look, then store LEASED: two claimers take one entry."""
    words = yield from protocol.read_words(geometry)
    for slot, word in enumerate(words):
        state = StateWord.unpack(word)
        if state.kind is Kind.READY and state.rank in (0, rank):
            leased = protocol.advance("claim", state, rank)
            _, content = yield (
                Write(geometry.state_offset(slot), layout.word_bytes(leased.pack())),
                Read(geometry.slot_offset(slot), geometry.slot_bytes),
            )
            return protocol.Claim(protocol.Held(slot, *leased[:3]), Slot.unpack(content).payload)
    return None


def reap_without_attempt(geometry: Geometry, dead: int, attempts_max: int) -> Program[recovery.Reaped]:
    """Redeliver under the old attempt: the fencing token comes back, and the cap is never reached."""
    return _with_other_swaps(recovery.reap(geometry, dead, attempts_max), _same_attempt)


def reap_nothing_in_writing(geometry: Geometry, dead: int, attempts_max: int) -> Program[recovery.Reaped]:
    """Forget what a dead publisher reserved."""
    return _with_other_swaps(recovery.reap(geometry, dead, attempts_max), _not_from_writing)


def abandon_what_is_kept(geometry: Geometry, rank: int, kept: Collection[protocol.Held]) -> Program[recovery.Reaped]:
    """Take back what the rank knows of, too: it works on, beside the next to claim it."""
    return recovery.abandon(geometry, rank, ())


def abandon_nothing(geometry: Geometry, rank: int, kept: Collection[protocol.Held]) -> Program[recovery.Reaped]:
    """Leave a claim whose answer was lost with a holder that doesn't know of it."""
    yield from recovery.states(geometry)
    return recovery.Reaped((), (), 0)


def _with_other_swaps(program: Program[recovery.Reaped], change) -> Program[recovery.Reaped]:
    try:
        chain = next(program)
        while True:
            altered = tuple(change(one) if isinstance(one, CompareSwap) else one for one in chain)
            chain = program.send((yield altered))
    except StopIteration as stop:
        return stop.value


def _same_attempt(swap: CompareSwap) -> CompareSwap:
    before, after = StateWord.unpack(swap.expected), StateWord.unpack(swap.replacement)
    if after.kind is not Kind.READY:
        return swap
    return swap._replace(replacement=after._replace(attempt=before.attempt).pack())


def _not_from_writing(swap: CompareSwap) -> CompareSwap:
    if StateWord.unpack(swap.expected).kind is not Kind.WRITING:
        return swap
    return swap._replace(replacement=swap.expected)


PLANTED: dict[str, Programs] = {
    "publish before reserve": Programs(publish=publish_before_reserve),
    "ack without compare-and-swap": Programs(ack=ack_blindly),
    "ack looks, then stores": Programs(ack=ack_check_then_store),
    "claim looks, then stores": Programs(claim=claim_check_then_store),
    "reap without attempt": Programs(reap=reap_without_attempt),
    "reap leaves half-written slots": Programs(reap=reap_nothing_in_writing),
    "a reconnection takes back known leases": Programs(abandon=abandon_what_is_kept),
    "a reconnection takes back nothing": Programs(abandon=abandon_nothing),
    "reap before fence": Programs(is_fenced_first=False),
}
