"""Opens the controller's rings: in its own memory, or in memory that a card serves and workers reach by themselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from triptych.config import ControllerConfig
from triptych.errors import NoCard, RingMismatch, RingRefused, RingUnreachable
from triptych.rings.access import try_card
from triptych.rings.layout import ATTEMPT_MAX
from triptych.rings.memory import MemoryRing, ignore
from triptych.rings.ring import Removed
from triptych.rings.verbs.host import RingHost
from triptych.roles import RING_OF, ROLES
from triptych.v1.dispatch_pb2 import Role

log = logging.getLogger(__name__)

FATAL = (RingUnreachable, RingMismatch, RingRefused)
"""Errors of the controller's own rings, on a card that fails: a new start mends that, another round doesn't."""


class Rings(NamedTuple):
    """The three rings, and how they are reached."""

    by_role: Mapping[Role.ValueType, MemoryRing]
    """Each by the role that claims from it."""
    host: RingHost | None
    """Serves them over RDMA; None where they are in plain memory."""
    reason: str
    """Why the one or the other."""
    removed: list[Removed]
    """Entries that a ring took out for good. `Upkeep` decides at its next tick what becomes of their jobs."""

    def close(self) -> None:
        """Cut all workers off and give the card back."""
        if self.host is not None:
            self.host.close()
            self.host.card.close()


def open_rings(config: ControllerConfig, epoch: int, on_ready: Callable[[Role.ValueType], None] = ignore) -> Rings:
    """Make three empty rings of this epoch, over RDMA where the setting `rings` and the machine allow it.

    Raises InvalidRequest for a device that isn't there, NoCard where `verbs` is asked for and can't be had.
    """
    removed: list[Removed] = []

    def make(role: Role.ValueType, host: RingHost | None) -> MemoryRing:
        return MemoryRing(
            RING_OF[role],
            epoch,
            attempts_max=ATTEMPT_MAX,  # the journal counts, and tells what failed from what was only handed back
            on_dead_letter=removed.append,
            on_ready=lambda: on_ready(role),
            on_fence=host.disconnect if host is not None else ignore,
            driver=host.driver(ROLES.index(role)) if host is not None else None,
        )

    card, reason = try_card(config.rings, config.rdma_device)
    if card is not None:
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(card.close)
                host = RingHost(card, len(ROLES))
                undo.callback(host.close)
                by_role = {role: make(role, host) for role in ROLES}
                undo.pop_all()
            return Rings(by_role, host, f"{card.place} serves them, by {card.binding}", removed)
        except (NoCard, *FATAL) as error:
            if config.rings == "verbs":
                raise NoCard(f"the rings can't be served over RDMA: {error}") from error
            reason = str(error)
            log.warning("the rings are in plain memory: %s", reason)
    return Rings({role: make(role, None) for role in ROLES}, None, reason, removed)
