"""The job in hand: what the event loop and the stage's thread share of it."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.rings.ring import Claimed
from triptych.v1.dispatch_pb2 import Dispatch


@dataclass
class Running:
    """A claimed dispatch and how far it is. Each field is written by one thread only."""

    claimed: Claimed
    epoch: int
    """The controller's epoch in which the lease is valid."""
    stop: bool = False
    """Whether the job is to stop: it was cancelled, lost, or is to be handed back."""
    lost: bool = False
    """Whether the lease is no longer this worker's: drop everything, report nothing."""
    room_id: int = 0
    """The room that it makes, from before it is in the arena; 0 while the stage runs."""
    declared_room_ids: frozenset[int] = frozenset()
    """Rooms that the worker named when it last registered. Those that nobody needs are released already."""
    pixels: float = 0.0
    """The job's size, from when the controller has told it."""
    step: int = 0
    step_count: int = 0
    preview_png: bytes = b""

    @property
    def dispatch(self) -> Dispatch:
        """The work that was claimed."""
        return self.claimed.dispatch

    def lose(self) -> None:
        """The lease is no longer this worker's."""
        self.lost = True
        self.stop = True

    def should_stop(self) -> bool:
        """Whether to stop; the stage's thread asks before the stage and after each step.

        Deadlines are the controller's, by its own clock: it orders the stop. So a worker whose clock is wrong neither
        ends a job nor refuses one.
        """
        return self.stop
