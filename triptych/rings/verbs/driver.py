"""Runs the ring's programs over a connected queue pair: each chain is one post and one completion.

All data of a chain goes through one buffer that was registered with the connection. The wait for a completion polls,
because it takes microseconds, and yields the core between two looks. The card gives up on a silent peer after two
seconds; a bound here ends the wait for a card that never answers.

Any failure ends the connection. The outcome of its chain is unknown, and the program is abandoned. The controller
undoes its half-done operations when the worker connects again.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from triptych.errors import RingRefused, RingUnreachable
from triptych.rdma_devices import address_of
from triptych.rings import layout
from triptych.rings.layout import Geometry
from triptych.rings.program import CompareSwap, FetchAdd, Operation, Program, Read, Write, drive
from triptych.rings.verbs.card import Card, Opcode, QueuePair, Rights, Status, WorkRequest

T = TypeVar("T")

CHAIN_TIMEOUT_S = 5.0
"""Bound of one chain: over twice the time after which the card gives up on a dead peer, below the worker timeout."""
CHAIN_EXTRA_OPERATIONS = 8
"""A chain may have one operation for each slot and a few more."""

_REFUSED = frozenset({Status.REM_ACCESS_ERR, Status.REM_INV_REQ_ERR, Status.REM_OP_ERR})


class Connection:
    """A queue pair that initiates, its buffer, and counters. Belongs to one thread, which closes it."""

    def __init__(self, card: Card, geometry: Geometry, *, timeout_s: float = CHAIN_TIMEOUT_S) -> None:
        """Register the buffer; connect afterwards with `queue_pair.connect`. Raises OSError."""
        self.chain_length_max = geometry.slot_count + CHAIN_EXTRA_OPERATIONS
        self._buffer = mmap.mmap(-1, geometry.ring_bytes)
        self._address = address_of(self._buffer)
        rights = Rights.LOCAL
        self.queue_pair: QueuePair = card.queue_pair(self._address, len(self._buffer), rights, self.chain_length_max)
        self._timeout_s = timeout_s
        self.is_broken = False
        self.post_count = 0
        """Chains handed to the card: round trips."""
        self.request_count = 0
        """Operations in them."""

    def run(self, chain: Sequence[Operation], base_address: int, remote_key: int, swapped: bool) -> tuple[Any, ...]:
        """Perform a chain on the far memory at `base_address` and return its results.

        Raises RingUnreachable and RingRefused; after either, every call raises RingUnreachable.
        """
        if self.is_broken:
            raise RingUnreachable("the connection to the rings is broken")
        requests, places = self._requests(chain, base_address)
        try:
            self._perform(requests, remote_key)
        except BaseException:
            self.is_broken = True
            raise
        return tuple(self._result(operation, place, swapped) for operation, place in zip(chain, places, strict=True))

    def close(self) -> None:
        """Tear the queue pair down and give the buffer back."""
        self.is_broken = True
        self.queue_pair.close()
        self._buffer.close()

    def _requests(self, chain: Sequence[Operation], base_address: int) -> tuple[list[WorkRequest], list[int]]:
        """The chain for the card, and the place of each operation's bytes in the buffer."""
        assert len(chain) <= self.chain_length_max
        requests = []
        places = []
        position = 0
        follows_answer = False
        for operation in chain:
            opcode, size_bytes, first, second = _translated(operation)
            if isinstance(operation, Write):
                self._buffer[position : position + size_bytes] = operation.data
            is_fenced = follows_answer and opcode is not Opcode.READ
            local = self._address + position
            remote = base_address + operation.offset
            requests.append(WorkRequest(opcode, local, size_bytes, remote, first, second, is_fenced))
            places.append(position)
            position += -(-size_bytes // layout.WORD_BYTES) * layout.WORD_BYTES
            follows_answer = follows_answer or opcode is not Opcode.WRITE
        return requests, places

    def _perform(self, requests: Sequence[WorkRequest], remote_key: int) -> None:
        self.post_count += 1
        self.request_count += len(requests)
        try:
            self.queue_pair.post(requests, remote_key)
            status = self._wait()
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise RingRefused(f"the card refuses the operation ({error}); is its address aligned?") from error
            raise RingUnreachable(f"the card fails: {error}") from error
        if status in _REFUSED:
            raise RingRefused(f"the rings' host refuses the operation ({_name(status)}): wrong key, range or right")
        if status != Status.SUCCESS:
            raise RingUnreachable(f"the rings' host can't be reached ({_name(status)})")

    def _wait(self) -> int:
        deadline_s = time.monotonic() + self._timeout_s
        while (status := self.queue_pair.poll()) is None:
            if time.monotonic() > deadline_s:
                raise RingUnreachable(f"an operation did not complete within {self._timeout_s:g} s")
            os.sched_yield()
        return status

    def _result(self, operation: Operation, place: int, swapped: bool) -> Any:
        match operation:
            case Read():
                return self._buffer[place : place + operation.size_bytes]
            case Write():
                return None
            case FetchAdd() | CompareSwap():
                word = layout.word_at(self._buffer[place : place + layout.WORD_BYTES])
                return layout.swapped(word) if swapped else word


class VerbsDriver:
    """Runs programs on one ring behind a connection. See `program.Driver`."""

    name = "verbs"
    is_shared = True

    def __init__(self, connection: Connection, base_address: int, remote_key: int) -> None:
        self._connection = connection
        self._base_address = base_address
        self._remote_key = remote_key
        self.answers_swapped = False

    def execute(self, program: Program[T]) -> T:
        """See `program.Driver`."""
        return drive(
            program,
            lambda chain: self._connection.run(chain, self._base_address, self._remote_key, self.answers_swapped),
        )


def _translated(operation: Operation) -> tuple[Opcode, int, int, int]:
    """The opcode, the number of bytes in the buffer, and the operands of an atomic."""
    match operation:
        case Read():
            return Opcode.READ, operation.size_bytes, 0, 0
        case Write():
            return Opcode.WRITE, len(operation.data), 0, 0
        case FetchAdd():
            return Opcode.FETCH_ADD, layout.WORD_BYTES, operation.addend, 0
        case CompareSwap():
            return Opcode.COMPARE_SWAP, layout.WORD_BYTES, operation.expected, operation.replacement


def _name(status: int) -> str:
    return Status(status).name if status in Status._value2member_map_ else f"status {status}"
