"""What a worker counts and measures: waits, its stage, rooms that it fetches, its arena and its device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry.metrics import Meter, Observation

from triptych.config import MOVERS
from triptych.roles import RING_OF, ring_name, role_name
from triptych.telemetry import devices
from triptych.telemetry.instruments import Instruments
from triptych.v1.dispatch_pb2 import Role


class WorkerMetrics:
    """The instruments of a worker of one role. Without a meter every method does nothing.

    Threads: all belongs to the event loop; the thread that serves or sends metrics reads `_busy`, which is one value.
    """

    def __init__(self, role: Role.ValueType, meter: Meter | None = None) -> None:
        self._role = role_name(role)
        self._ring = ring_name(RING_OF[role])
        self._busy: tuple[float, float | None] = 0.0, None
        """Seconds with a job in hand, without the present one, and since when that is."""
        self._instruments = Instruments(meter)
        seconds, count = self._instruments.seconds, self._instruments.count
        self._queue_wait = seconds("triptych.queue.wait", "Time from ready, or ready again, to claim")
        self._stage_run = seconds("triptych.stage.run", "Time that a stage ran")
        self._transfer = seconds("triptych.transfer", "Time to fetch a room")
        self._transfer_bytes = count("triptych.transfer.bytes", "By", "Bytes of rooms fetched", mover=MOVERS)
        about = "Dispatches that were delivered again"
        self._redeliveries = count("triptych.redeliveries", "{dispatch}", about, ring=[self._ring])
        about = "Times that a worker stopped claiming to check itself"
        self._quarantines = count("triptych.quarantines", "{quarantine}", about, stage=[self._role])
        about = "Rooms that were read with wrong bytes"
        self._checksum_failures = count("triptych.checksum_failures", "{room}", about, mover=MOVERS)
        about = "Time with a job in hand"
        self._instruments.total("triptych.worker.busy", "s", about, self._busy_now)

    def queue_waited(self, wait_s: float) -> None:
        """A job was ready for `wait_s` seconds before it was claimed."""
        self._queue_wait.record(wait_s, {"stage": self._role})

    def stage_ran(self, run_s: float) -> None:
        """The stage ran for `run_s` seconds to its end."""
        self._stage_run.record(run_s, {"stage": self._role})

    def transferred(self, mover: str, size_bytes: int, transfer_s: float) -> None:
        """A mover fetched a room."""
        self._transfer.record(transfer_s, {"mover": mover})
        self._transfer_bytes.add(size_bytes, {"mover": mover})

    def redelivered(self) -> None:
        """A dispatch that was claimed had been claimed before."""
        self._redeliveries.add(1, {"ring": self._ring})

    def quarantined(self) -> None:
        """The worker failed one job after another, and checks itself."""
        self._quarantines.add(1, {"stage": self._role})

    def checksum_failed(self, mover: str) -> None:
        """A room's bytes differed from its checksum."""
        self._checksum_failures.add(1, {"mover": mover})

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The worker has a job in hand while the block runs."""
        before_s, started_s = self._busy[0], time.monotonic()
        self._busy = before_s, started_s
        try:
            yield
        finally:
            self._busy = before_s + time.monotonic() - started_s, None

    def _busy_now(self) -> list[Observation]:
        before_s, started_s = self._busy
        now_s = 0.0 if started_s is None else time.monotonic() - started_s
        return [Observation(before_s + now_s, {"role": self._role})]

    def watch_arena(self, used_bytes: Callable[[], int], size_bytes: int) -> None:
        """Show how much of the arena is in use."""
        amount = self._instruments.amount
        amount("triptych.arena.used", "By", "Bytes of the arena in use", lambda: [Observation(used_bytes())])
        amount("triptych.arena.size", "By", "Bytes of the arena", lambda: [Observation(size_bytes)])

    def watch_device_memory(self, used_bytes: Callable[[], int]) -> None:
        """Show how much memory of the device the stage uses."""
        about = "Bytes of device memory that the stage uses"
        self._instruments.amount("triptych.device.memory", "By", about, lambda: [Observation(used_bytes())])

    def watch_device(self, uuid: str) -> None:
        """Show memory and utilisation of a whole NVIDIA device; nothing where NVML doesn't know it."""
        if (device := devices.open_device(uuid)) is not None:
            device.show(self._instruments)
