"""The controller's side: the rings' memory, a queue pair for each rank, and a loopback pair for the controller itself.

A card's atomics are atomic with each other, but not with the CPU's or another card's. So one card serves all ranks, and
this process never touches the memory: the controller goes through the card as well, by a queue pair that is connected
to its own other end.

A rank's key is valid on its own connection only, because each connection has its own protection domain and
registration. (Memory windows would need one registration only, but not every card has them, and each needs a work
request to bind.) The rank's end initiates; this end stays in Ready To Receive and only answers. Cutting a rank off
destroys its queue pair, and with it all operations on their way: that is the fence which must come before a reap.
"""

from __future__ import annotations

import contextlib
import mmap

from triptych.errors import InvalidRequest, NoCard
from triptych.rdma_devices import address_of
from triptych.rings.layout import Geometry
from triptych.rings.verbs.card import FULL_RIGHTS, Card, QueuePair, Rights, refusal
from triptych.rings.verbs.driver import Connection, VerbsDriver
from triptych.v1.ring_service_pb2 import QueuePairAddress

QUEUE_DEPTH = 1
"""This end posts nothing."""


class RingHost:
    """See the module's docstring. Its owner closes it; everything belongs to one thread."""

    def __init__(self, card: Card, ring_count: int) -> None:
        """Take memory for `ring_count` rings and connect the loopback pair. Raises NoCard if the card refuses."""
        self.card = card
        self.geometry = Geometry()
        self._memory = mmap.mmap(-1, ring_count * self.geometry.ring_bytes)
        self._address = address_of(self._memory)
        self.by_rank: dict[int, QueuePair] = {}
        """This end of each rank's connection."""
        try:
            with contextlib.ExitStack() as parts:
                parts.callback(self._memory.close)
                self._loopback = parts.enter_context(contextlib.closing(Connection(card, self.geometry)))
                self._far_end = parts.enter_context(contextlib.closing(self._expose(FULL_RIGHTS)))
                self._far_end.connect(self._loopback.queue_pair.address, initiates=False)
                self._loopback.queue_pair.connect(self._far_end.address, initiates=True)
                self._parts = parts.pop_all()
        except OSError as error:
            raise NoCard(f"the controller's {refusal(self.card.place, error)}") from error

    def address(self, index: int) -> int:
        """The address of ring number `index`."""
        return self._address + index * self.geometry.ring_bytes

    def driver(self, index: int) -> VerbsDriver:
        """The controller's own way to ring number `index`."""
        return VerbsDriver(self._loopback, self.address(index), self._far_end.remote_key)

    def connect(self, rank: int, other: QueuePairAddress, rights: Rights = FULL_RIGHTS) -> QueuePair:
        """Give a rank a connection of its own, in place of any earlier one, and return this end of it.

        Raises NoCard if this card refuses, InvalidRequest for an impossible address.
        """
        self.disconnect(rank)
        try:
            pair = self.by_rank[rank] = self._expose(rights)
            pair.connect(other, initiates=False)
        except OSError as error:
            self.disconnect(rank)
            raise NoCard(f"the controller's {refusal(self.card.place, error)}") from error
        except ValueError as error:
            self.disconnect(rank)
            raise InvalidRequest(
                "address", " ".join(str(other).split()), f"the end of a queue pair ({error})"
            ) from error
        return pair

    def disconnect(self, rank: int) -> None:
        """Cut a rank off, if it is connected: afterwards none of its operations can change the memory."""
        pair = self.by_rank.pop(rank, None)
        if pair is not None:
            pair.close()

    def close(self) -> None:
        """Cut all ranks off and give the memory back."""
        for pair in self.by_rank.values():
            self._parts.callback(pair.close)
        self.by_rank.clear()
        self._parts.close()

    def _expose(self, rights: Rights) -> QueuePair:
        return self.card.queue_pair(self._address, len(self._memory), rights, QUEUE_DEPTH)
