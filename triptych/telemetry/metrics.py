"""What the fleet counts and measures (`docs/telemetry.md` has the table). Without a meter every method does nothing.

Threads: the callbacks given to `watch_…` are called from the thread that serves or sends metrics, so they only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, NoOpMeter, Observation

SECONDS_BOUNDARIES = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0)
"""Histogram boundaries: from a hand-off in shared memory to a long denoising, about one factor of four apart."""


class RingDepth(NamedTuple):
    """How full one ring is, in slots."""

    ring: str
    ready_count: int
    leased_count: int


class Metrics:
    """The instruments of one process."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter or NoOpMeter("triptych")
        self._queue_wait = self._seconds("triptych.queue.wait", "Time from publish to claim")
        self._stage_run = self._seconds("triptych.stage.run", "Time that a stage ran")
        self._transfer = self._seconds("triptych.transfer", "Time to fetch a room")
        count = self._meter.create_counter
        self._transfer_bytes = count("triptych.transfer.bytes", "By", "Bytes of rooms fetched")
        self._redeliveries = count("triptych.redeliveries", "", "Dispatches that were delivered again")
        self._dead_letters = count("triptych.dead_letters", "", "Jobs that failed at the attempts cap")
        self._quarantines = count("triptych.quarantines", "", "Times that a worker stopped claiming to check itself")
        self._background_failures = count(
            "triptych.background.failures", "", "Rounds of the controller's own work that failed"
        )
        self._reconciliations = count("triptych.reconciliations", "", "What nobody knew of any more")
        self._checksum_failures = count("triptych.checksum_failures", "", "Rooms that were read with wrong bytes")

    def queue_waited(self, stage: str, wait_s: float) -> None:
        """A dispatch for `stage` lay in its ring for `wait_s` seconds before it was claimed."""
        self._queue_wait.record(wait_s, {"stage": stage})

    def stage_ran(self, stage: str, run_s: float) -> None:
        """A stage ran for `run_s` seconds."""
        self._stage_run.record(run_s, {"stage": stage})

    def transferred(self, mover: str, size_bytes: int, transfer_s: float) -> None:
        """A mover fetched a room."""
        self._transfer.record(transfer_s, {"mover": mover})
        self._transfer_bytes.add(size_bytes, {"mover": mover})

    def redelivered(self, ring: str) -> None:
        """A dispatch went back into its ring for another attempt."""
        self._redeliveries.add(1, {"ring": ring})

    def dead_lettered(self, stage: str) -> None:
        """A job failed because `stage` reached the attempts cap."""
        self._dead_letters.add(1, {"stage": stage})

    def quarantined(self, stage: str) -> None:
        """A worker failed one job after another, and checks itself."""
        self._quarantines.add(1, {"stage": stage})

    def background_failed(self, task: str) -> None:
        """A round of the controller's own work (`upkeep.py`) failed, and is tried again."""
        self._background_failures.add(1, {"task": task})

    def reconciled(self, what: str) -> None:
        """The controller found a `job` that nobody knew of, a `lease` likewise, or a `worker` idle beside work."""
        self._reconciliations.add(1, {"what": what})

    def checksum_failed(self, mover: str) -> None:
        """A room's bytes differed from its checksum."""
        self._checksum_failures.add(1, {"mover": mover})

    def watch_rings(self, depths: Callable[[], Iterable[RingDepth]]) -> None:
        """Show the rings as `depths` returns them. The rings count as empty when nothing waits for a claimer."""

        def ready_count() -> int:
            return sum(depth.ready_count for depth in depths())

        def sizes(_: CallbackOptions) -> list[Observation]:
            return [Observation(depth.ready_count, {"ring": depth.ring}) for depth in depths()]

        def in_flight(_: CallbackOptions) -> list[Observation]:
            return [Observation(depth.leased_count, {"ring": depth.ring}) for depth in depths()]

        gauge = self._meter.create_observable_gauge
        gauge("queue_sizes", [sizes], "", "Dispatches that wait for a claimer, by ring")
        gauge("queue_in_flight", [in_flight], "", "Dispatches that are held by a worker, by ring")
        self._gauge("queue_total_pending", "", "Dispatches that wait for a claimer, in all rings", ready_count)
        self._gauge("all_queues_empty", "", "1 when no dispatch waits, else 0", lambda: int(not ready_count()))

    def watch_arena(self, used_bytes: Callable[[], int], size_bytes: int) -> None:
        """Show how much of an arena is in use."""
        self._gauge("triptych.arena.used", "By", "Bytes of the arena in use", used_bytes)
        self._gauge("triptych.arena.size", "By", "Bytes of the arena", lambda: size_bytes)

    def watch_device_memory(self, used_bytes: Callable[[], int]) -> None:
        """Show how much memory of the device is in use."""
        self._gauge("triptych.device.memory", "By", "Bytes of device memory in use", used_bytes)

    def watch_loop(self, longest_s: Callable[[], float]) -> None:
        """Show the longest time, in seconds of CPU, that one callback has held the event loop."""
        self._gauge("triptych.event_loop.hold", "s", "Longest time that one callback held the event loop", longest_s)

    def _seconds(self, name: str, about: str) -> Histogram:
        return self._meter.create_histogram(
            name, "s", about, explicit_bucket_boundaries_advisory=list(SECONDS_BOUNDARIES)
        )

    def _gauge(self, name: str, unit: str, about: str, read: Callable[[], float]) -> None:
        self._meter.create_observable_gauge(name, [lambda _: [Observation(read())]], unit, about)
