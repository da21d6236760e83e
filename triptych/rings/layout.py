"""The place of every byte of a ring, and the meaning of a state word. No I/O.

All integers are little-endian. Every word for atomics is 8 bytes long and 8-byte aligned, because NICs refuse any
other.

    offset          bytes   what
    0               8       magic
    8               8       byte-order probe, a number whose bytes are all different
    16              8       layout version
    24              8       epoch of the controller that formatted the ring
    32              8       which ring (`triptych.v1.Ring`)
    40              8       slot count
    48              8       largest payload of a slot
    64              8       ticket counter, alone in its cache line
    128             8       scratch word for the self-test, alone in its cache line
    192             8       how often an entry was delivered again, alone in its cache line
    1024            1024    state words, one for each slot: one read shows the whole ring
    4096            532480  slots: 64 bytes of header (length, ticket, target), then at most 4096 of payload
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from triptych.ids import RANK_BITS, RANK_MAX

RING_MAGIC = int.from_bytes(b"TRIPRING", "little")
"""First word of every ring."""
BYTE_ORDER_PROBE = 0x0102030405060708
"""Reads differently in any other byte order."""
LAYOUT_VERSION = 3
"""Raised by every change to this file that moves a byte or changes a meaning."""

WORD_BYTES = 8
"""Size of the words that NIC atomics work on."""
CACHE_LINE_BYTES = 64
"""Distance between words that many write at the same time."""
SLOT_COUNT = 128
"""Slots of a ring: twice the largest planned fleet, and their state words are 1 KiB, one small read."""
PAYLOAD_BYTES_MAX = 4096
"""Largest dispatch: ids and references only; a room with 32 tensors named takes about 3 KiB."""
SLOT_HEADER_BYTES = CACHE_LINE_BYTES
"""Length, ticket and target of a slot, padded so that payloads start on a cache line."""

TICKET_OFFSET = 64
SCRATCH_OFFSET = 128
REDELIVERED_OFFSET = 192
STATES_OFFSET = 1024
SLOTS_OFFSET = 4096
"""One page for header and state words, slots from the next."""

TICKET_BITS = 26
ATTEMPT_BITS = 6
KIND_BITS = 4
"""Fields of a state word beside the rank; 64 bits together. Ranks have most, because they are never reused.

Few bits suffice for tickets, because nothing depends on them alone:

* Their order only decides which entry is claimed first. It is right while no two live entries are 2^25 draws apart. The
  ring has 128 slots, and at the 25,000 claims a second of plain memory an entry that any worker may claim would have to
  stay the oldest for 22 minutes.
* A compare-and-swap succeeds wrongly if the word that a rank has read comes back with other content: same slot, attempt
  and rank, 2^26 draws later (45 minutes at that rate, 12 hours at gRPC's). A rank that stands still so long was fenced
  after `worker_timeout_s`, and its RDMA connection is gone. Its work would be refused by the journal as well, whose
  leases belong to one job in one generation.

Attempts end at 63: then the entry leaves the ring, and the controller publishes its job again, in another generation.
The kind keeps four bits, so that three quarters of all damaged words are recognised.
"""
TICKET_COUNT = 1 << TICKET_BITS
ATTEMPT_MAX = (1 << ATTEMPT_BITS) - 1
_HALF = TICKET_COUNT >> 1
_KIND_MASK = (1 << KIND_BITS) - 1
_WORD_MASK = (1 << 64) - 1

_HEADER = struct.Struct("<7Q")
_SLOT_HEADER = struct.Struct("<III")

assert TICKET_BITS + ATTEMPT_BITS + RANK_BITS + KIND_BITS == 8 * WORD_BYTES
assert STATES_OFFSET + SLOT_COUNT * WORD_BYTES <= SLOTS_OFFSET


class Kind(IntEnum):
    """The four states of a slot. FREE is 0, so that zeroed memory is an empty ring."""

    FREE = 0
    WRITING = 1
    READY = 2
    LEASED = 3


class StateWord(NamedTuple):
    """A slot's state: `ticket:26 | attempt:6 | rank:28 | kind:4`, most significant first.

    `rank` is the writer of WRITING, the target of READY (0: anyone), the holder of LEASED (0: the controller).
    """

    ticket: int
    attempt: int
    rank: int
    kind: Kind

    def pack(self) -> int:
        """The word as an unsigned 64-bit integer."""
        assert 0 <= self.ticket < TICKET_COUNT
        assert 0 <= self.attempt <= ATTEMPT_MAX
        assert 0 <= self.rank <= RANK_MAX
        return (((self.ticket << ATTEMPT_BITS | self.attempt) << RANK_BITS) | self.rank) << KIND_BITS | self.kind

    @classmethod
    def unpack(cls, word: int) -> StateWord:
        """The fields of a word. Raises ValueError for an unknown kind: the memory is damaged."""
        return cls(
            word >> (KIND_BITS + RANK_BITS + ATTEMPT_BITS),
            (word >> (KIND_BITS + RANK_BITS)) & ATTEMPT_MAX,
            (word >> KIND_BITS) & RANK_MAX,
            Kind(word & _KIND_MASK),
        )


FREE_WORD = StateWord(0, 0, 0, Kind.FREE).pack()
"""The only word of a free slot."""


def claimable_ticket(word: int, rank: int) -> int | None:
    """The ticket of a packed word that is READY for `rank`, else None. Faster than `StateWord.unpack`."""
    if word & _KIND_MASK != Kind.READY or (word >> KIND_BITS) & RANK_MAX not in (0, rank):
        return None
    return word >> (KIND_BITS + RANK_BITS + ATTEMPT_BITS)


def ticket_after(first: int, second: int) -> int:
    """How many draws `second` comes after `first`, negative if before (RFC 1982, 26 bits).

    This is right while no two live tickets are 2^25 draws or more apart.
    """
    return (second - first + _HALF) % TICKET_COUNT - _HALF


def first_ticket(epoch: int) -> int:
    """The first ticket of an epoch. Consecutive epochs start far apart (multiplicative hashing, Knuth 6.4).

    So a lease of an earlier epoch isn't taken for one of this epoch, although the memory was zeroed in between.
    """
    return epoch * 0x278DDE7 % TICKET_COUNT


class Geometry(NamedTuple):
    """The number and size of slots, and the sizes and offsets that follow. Only tests use other than the default."""

    slot_count: int = SLOT_COUNT
    payload_bytes_max: int = PAYLOAD_BYTES_MAX

    @property
    def states_bytes(self) -> int:
        """Length of all state words."""
        return self.slot_count * WORD_BYTES

    @property
    def slot_bytes(self) -> int:
        """Distance from one slot to the next."""
        return SLOT_HEADER_BYTES + self.payload_bytes_max

    @property
    def ring_bytes(self) -> int:
        """Length of the whole ring."""
        return SLOTS_OFFSET + self.slot_count * self.slot_bytes

    def state_offset(self, slot: int) -> int:
        """Offset of a slot's state word."""
        assert 0 <= slot < self.slot_count
        return STATES_OFFSET + slot * WORD_BYTES

    def slot_offset(self, slot: int) -> int:
        """Offset of a slot's header."""
        assert 0 <= slot < self.slot_count
        return SLOTS_OFFSET + slot * self.slot_bytes

    def words(self, states: bytes) -> list[int]:
        """The state words in the bytes at `STATES_OFFSET`."""
        return list(struct.unpack(f"<{self.slot_count}Q", states))


class Header(NamedTuple):
    """The ring's first words. Programs use only rings with exactly their own header."""

    magic: int
    byte_order_probe: int
    layout_version: int
    epoch: int
    ring: int
    slot_count: int
    payload_bytes_max: int

    def pack(self) -> bytes:
        """The header's bytes."""
        return _HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """The header in `data`, unchecked."""
        return cls(*_HEADER.unpack(data))

    @classmethod
    def of(cls, ring: int, epoch: int, geometry: Geometry) -> Header:
        """The header of a ring for this program."""
        return cls(RING_MAGIC, BYTE_ORDER_PROBE, LAYOUT_VERSION, epoch, ring, *geometry)


RING_HEADER_BYTES = _HEADER.size


class Slot(NamedTuple):
    """A slot's content."""

    ticket: int
    target: int
    payload: bytes

    def pack(self) -> bytes:
        """The slot's bytes, up to the payload's end."""
        head = _SLOT_HEADER.pack(len(self.payload), self.ticket, self.target)
        return head.ljust(SLOT_HEADER_BYTES, b"\0") + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> Slot:
        """The slot in `data`. In a torn read the payload may be shorter than its length field says.

        An impossible target stands for anyone, as 0 does.
        """
        length, ticket, target = _SLOT_HEADER.unpack_from(data)
        return cls(ticket, target if target <= RANK_MAX else 0, data[SLOT_HEADER_BYTES : SLOT_HEADER_BYTES + length])


def word_at(data: bytes) -> int:
    """The word that eight bytes hold."""
    return int.from_bytes(data, "little")


def swapped(word: int) -> int:
    """The word with its bytes in the other order."""
    return int.from_bytes(word.to_bytes(WORD_BYTES, "little"), "big")


def word_bytes(word: int) -> bytes:
    """The eight bytes of a word, modulo 2^64."""
    return (word & _WORD_MASK).to_bytes(WORD_BYTES, "little")
