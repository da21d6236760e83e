"""The order of waiting jobs: three priorities, clients in turn within each, first come first served within a client.

Pure data: no clock, no I/O. Any job of a higher priority comes before any of a lower one, so a client that may use
`PRIORITY_HIGH` can hold up all others; within a priority nobody can, however many jobs it has.
"""

from __future__ import annotations

from collections import OrderedDict

from triptych.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Priority

PRIORITY_ORDER = (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW)
"""In the order in which they are served."""


class FairQueue:
    """Jobs that wait, each with the generation that it waits in."""

    def __init__(self) -> None:
        self._turns: dict[Priority.ValueType, OrderedDict[str, OrderedDict[str, int]]] = {
            priority: OrderedDict() for priority in PRIORITY_ORDER
        }
        """By priority: clients in the order of their turns, each with its jobs in the order in which they came."""
        self._place: dict[str, tuple[Priority.ValueType, str]] = {}

    def __len__(self) -> int:
        return len(self._place)

    def waits(self, job_id: str, generation: int) -> bool:
        """Whether a job waits here, in this generation."""
        place = self._place.get(job_id)
        return place is not None and self._turns[place[0]][place[1]][job_id] == generation

    def put(self, job_id: str, generation: int, client: str, priority: Priority.ValueType) -> None:
        """Have a job wait, after its client's others. One that waits already keeps its place, in the new generation.

        A client that had nothing waiting has its turn after all that have.
        """
        if job_id not in self._place:
            self._place[job_id] = priority if priority in PRIORITY_ORDER else PRIORITY_NORMAL, client
        priority, client = self._place[job_id]
        self._turns[priority].setdefault(client, OrderedDict())[job_id] = generation

    def head(self) -> tuple[str, int] | None:
        """The next job and its generation, or None."""
        for clients in self._turns.values():
            for waiting in clients.values():
                return next(iter(waiting.items()))
        return None

    def pop(self) -> tuple[str, int] | None:
        """Take the next job out; its client's next turn is after all others'."""
        found = self.head()
        if found is not None:
            priority, client = self._place[found[0]]
            self.discard(found[0])
            if client in self._turns[priority]:
                self._turns[priority].move_to_end(client)
        return found

    def discard(self, job_id: str) -> None:
        """Take a job out that needs nothing any more. It costs its client no turn."""
        place = self._place.pop(job_id, None)
        if place is None:
            return
        clients = self._turns[place[0]]
        del clients[place[1]][job_id]
        if not clients[place[1]]:
            del clients[place[1]]
