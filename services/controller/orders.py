"""Orders to a worker, and the numbers of its registrations: pure, no I/O, no clock.

    event                     what follows
    registration n            taken where n is newer than the last; refused where it is older.
                              0 is a worker that doesn't count: always taken
    stream of registration n  taken where n is the last; every order that isn't acknowledged is due on it, again
    order                     kept, under the next number, until a report acknowledges that number
    report, acknowledging m   orders up to m had their effect, and are forgotten
    lease of a worker that    it was made for an answer that never came, or is left over: after a while (see
    its reports don't name    `reconciler.py`) it is taken back, or the worker asked to register again

EDITORS' RULE: an order is state and not an event, so applying one twice does no harm. The worker's side is
`services/worker/registrations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.v1.dispatch_pb2 import Ring
from triptych.v1.fleet_service_pb2 import HeartbeatResponse


@dataclass
class Orders:
    """The orders that a worker hasn't acknowledged, each with its number."""

    _cancel: dict[str, int] = field(default_factory=dict)
    _release: dict[int, int] = field(default_factory=dict)
    _ready_rings: set[Ring.ValueType] = field(default_factory=set)
    _number: int = 0
    _sent: int = 0
    """The newest number that went out on the present stream."""

    def cancel(self, job_id: str) -> None:
        self._number += 1
        self._cancel[job_id] = self._number

    def release(self, room_id: int) -> None:
        self._number += 1
        self._release[room_id] = self._number

    def hint(self, ring: Ring.ValueType) -> None:
        """Look at a ring. This alone isn't kept: a worker that missed it looks by itself a little later."""
        self._ready_rings.add(ring)

    def stream_opened(self) -> None:
        """Nothing was sent on this stream yet; what went out on an older one may never have come."""
        self._sent = 0

    def acknowledged(self, number: int) -> None:
        """The worker has applied all orders up to a number."""
        self._cancel = {job_id: at for job_id, at in self._cancel.items() if at > number}
        self._release = {room_id: at for room_id, at in self._release.items() if at > number}

    def take(self) -> HeartbeatResponse:
        """The orders to send on the present stream now; empty where there are none."""
        result = HeartbeatResponse(
            cancel_job_ids=sorted(job_id for job_id, at in self._cancel.items() if at > self._sent),
            release_room_ids=sorted(room_id for room_id, at in self._release.items() if at > self._sent),
            ready_rings=sorted(self._ready_rings),
        )
        if result.ByteSize():
            result.number = self._number
        self._sent = self._number
        self._ready_rings.clear()
        return result


@dataclass
class Registrations:
    """Which registration of a worker is the last."""

    number: int = 0

    def take(self, number: int) -> bool:
        """A registration came; whether it is to be taken."""
        if number and number <= self.number:
            return False
        self.number = number
        return True

    def is_last(self, number: int) -> bool:
        """Whether a stream or a report is of the last registration."""
        return number in (0, self.number)
