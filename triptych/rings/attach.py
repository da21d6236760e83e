"""Programs that make a ring and test, before first use, that this machine reads and changes it correctly.

The controller runs `format_ring` once an epoch. Every process runs `attach` once for each connection: it compares the
header, then tries both atomics on the scratch word, because some NICs answer atomics in big-endian and a ring that is
misread loses work silently. The trial shows the byte order of the answers.
"""

from __future__ import annotations

from triptych import errors
from triptych.rings import layout
from triptych.rings.layout import Geometry, Header
from triptych.rings.program import CompareSwap, FetchAdd, Program, Read, Write

SCRATCH_START = 0x0123456789ABCDEF
"""First value of the scratch word. Its bytes all differ, so that it reads differently in any other byte order."""
STRAY_MAX = 1 << 20
"""How far others' self-tests may move the scratch word during this one. A swapped word is off by far more."""
SWAPS_MAX = 64
"""Tries to win one compare-and-swap on the scratch word against others that attach at the same time."""


def format_ring(geometry: Geometry, ring: int, epoch: int) -> Program[None]:
    """Make the memory an empty ring of this epoch. The magic comes last, so that half a ring isn't taken for one."""
    header = Header.of(ring, epoch, geometry).pack()
    yield (
        Write(layout.STATES_OFFSET, bytes(geometry.states_bytes)),
        Write(layout.TICKET_OFFSET, layout.word_bytes(layout.first_ticket(epoch))),
        Write(layout.SCRATCH_OFFSET, layout.word_bytes(SCRATCH_START)),
        Write(layout.REDELIVERED_OFFSET, layout.word_bytes(0)),
        Write(layout.WORD_BYTES, header[layout.WORD_BYTES :]),
        Write(0, header[: layout.WORD_BYTES]),
    )


def attach(geometry: Geometry, ring: int, epoch: int) -> Program[bool]:
    """Check that the memory is this ring of this epoch and that atomics work on it. Raises RingMismatch.

    Returns whether atomics answer in the other byte order, for `program.Driver.answers_swapped`.
    """
    # A slot as well: a network that carries only small packets must be found out before the first claim.
    data, _ = yield Read(0, layout.RING_HEADER_BYTES), Read(geometry.slot_offset(0), geometry.slot_bytes)
    found = Header.unpack(data)
    wanted = Header.of(ring, epoch, geometry)
    for name, found_value, wanted_value in zip(Header._fields, found, wanted, strict=True):
        if found_value != wanted_value:
            raise errors.RingMismatch(f"the ring's {name} is {found_value:#x}, this program wants {wanted_value:#x}")
    return (yield from _try_atomics())


def _try_atomics() -> Program[bool]:
    """Fetch-and-add once, and compare-and-swap until it has succeeded once, on the scratch word."""
    scratch = Read(layout.SCRATCH_OFFSET, layout.WORD_BYTES)
    before, answer, after = yield scratch, FetchAdd(layout.SCRATCH_OFFSET, 1), scratch
    word = layout.word_at(before)
    swapped = not _is_near(word, answer, 0) and _is_near(word, layout.swapped(answer), 0)
    added_to = layout.swapped(answer) if swapped else answer
    _check_near("fetch-and-add", word, added_to, 0)
    word = layout.word_at(after)
    _check_near("fetch-and-add", added_to, word, 1)
    for _ in range(SWAPS_MAX):
        answer, after = yield CompareSwap(layout.SCRATCH_OFFSET, word, word + 1), scratch
        seen = layout.swapped(answer) if swapped else answer
        _check_near("compare-and-swap", word, seen, 0)
        if seen == word:
            _check_near("compare-and-swap", word, layout.word_at(after), 1)
            return swapped
        word = layout.word_at(after)
    raise errors.RingMismatch(f"compare-and-swap on the scratch word failed {SWAPS_MAX} times")


def _is_near(first: int, second: int, moved_min: int) -> bool:
    """Whether `second` is a little greater, as others only add to the scratch word; not so in the wrong byte order."""
    return moved_min <= second - first < STRAY_MAX


def _check_near(operation: str, first: int, second: int, moved_min: int) -> None:
    if not _is_near(first, second, moved_min):
        raise errors.RingMismatch(f"{operation} answered {second:#x} where {first:#x} or a little more was right")
