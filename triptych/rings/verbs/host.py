"""The controller's side: the rings' memory, a queue pair for each rank, and a loopback pair for the controller itself.

Atomics of a card are atomic among each other and not with the CPU's, and not with another card's. So this process
never touches the memory: the controller, too, goes through the card, by a queue pair connected to its own other end.
And one card serves all ranks.

A rank's key counts on its own connection only, because each has a protection domain and a registration of its own.
(Memory windows would do the same with one registration; but not every card has them, and each needs a work request to
bind.) The rank's end can ask; this end stays in Ready To Receive and only answers. Cutting a rank off destroys its
queue pair, and with it whatever was still on its way: that is the fence which must come before a reap.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import NamedTuple

from triptych.errors import InvalidRequest, NoCard
from triptych.memory import address_of
from triptych.rings.layout import Geometry
from triptych.rings.verbs.card import FULL_RIGHTS, Card, Peer, QueuePair, Rights, refusal
from triptych.rings.verbs.driver import Connection, VerbsDriver

QUEUE_DEPTH = 1
"""This end posts nothing."""


class Opened(NamedTuple):
    """What a rank needs to reach the memory."""

    peer: Peer
    remote_key: int


class RingHost:
    """See the module's docstring. Its owner closes it; everything belongs to one thread."""

    def __init__(self, card: Card, ring_count: int, geometry: Geometry = Geometry()) -> None:  # noqa: B008  (immutable)
        """Take memory for `ring_count` rings and connect the loopback pair. Raises NoCard where the card refuses."""
        self.card, self.geometry = card, geometry
        self._memory = mmap.mmap(-1, ring_count * geometry.ring_bytes)
        self._address = address_of(self._memory)
        self._by_rank: dict[int, QueuePair] = {}
        try:
            with contextlib.ExitStack() as parts:
                parts.callback(self._memory.close)
                self._loopback = parts.enter_context(contextlib.closing(Connection(card, geometry)))
                self._far_end = parts.enter_context(contextlib.closing(self._expose(FULL_RIGHTS)))
                self._far_end.connect(self._loopback.queue_pair.peer, initiates=False)
                self._loopback.queue_pair.connect(self._far_end.peer, initiates=True)
                self._parts = parts.pop_all()
        except OSError as error:
            raise NoCard(f"the controller's {refusal(self.card.place, error)}") from error

    def address(self, index: int) -> int:
        """Where ring number `index` lies."""
        return self._address + index * self.geometry.ring_bytes

    def driver(self, index: int) -> VerbsDriver:
        """The controller's own way to ring number `index`."""
        return VerbsDriver(self._loopback, self.address(index), self._far_end.remote_key)

    def connect(self, rank: int, other: Peer, rights: Rights = FULL_RIGHTS) -> Opened:
        """Give a rank a connection of its own, in place of any that it had.

        Raises NoCard where this card refuses, InvalidRequest for an address that can't be one.
        """
        self.disconnect(rank)
        try:
            pair = self._by_rank[rank] = self._expose(rights)
            pair.connect(other, initiates=False)
        except OSError as error:
            self.disconnect(rank)
            raise NoCard(f"the controller's {refusal(self.card.place, error)}") from error
        except ValueError as error:
            self.disconnect(rank)
            raise InvalidRequest("address", str(other), f"the end of a queue pair ({error})") from error
        return Opened(pair.peer, pair.remote_key)

    def disconnect(self, rank: int) -> None:
        """Cut a rank off: when this returns nothing of it can land any more. Harmless where it has no connection."""
        pair = self._by_rank.pop(rank, None)
        if pair is not None:
            pair.close()

    @property
    def ranks(self) -> Sequence[int]:
        """Ranks that are connected."""
        return sorted(self._by_rank)

    def close(self) -> None:
        """Cut everybody off and give the memory back."""
        for pair in self._by_rank.values():
            self._parts.callback(pair.close)
        self._by_rank.clear()
        self._parts.close()

    def _expose(self, rights: Rights) -> QueuePair:
        return self.card.queue_pair(self._address, len(self._memory), rights, QUEUE_DEPTH)
