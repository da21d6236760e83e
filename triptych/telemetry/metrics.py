"""What every process of a fleet measures (`docs/telemetry.md` has the table): its calls, its event loop, itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.metrics import Meter, Observation

from triptych.telemetry.instruments import Instruments

CALL_SECONDS_BOUNDARIES = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 120.0, 600.0, 3600.0),
)
"""The first line is what the conventions for `rpc.server.call.duration` name; claims wait, and streams last."""
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses that the conventions count as errors of a gRPC server; others are answers."""


class Metrics:
    """The instruments that all processes have. Without a meter every method does nothing."""

    def __init__(self, meter: Meter | None = None) -> None:
        self.meter = meter
        """For the instruments of a controller or a worker; None where metrics are off."""
        self._instruments = Instruments(meter)
        self._calls = self._instruments.seconds(
            "rpc.server.call.duration", "Time that a call took here", CALL_SECONDS_BOUNDARIES
        )

    def called(self, method: str, code: str, call_s: float) -> None:
        """A call of `method`, as `/package.Service/Method`, ended with a status, for example `OK`."""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": method.removeprefix("/"),
            "rpc.response.status_code": code,
        }
        if code in SERVER_ERRORS:
            attributes["error.type"] = code
        self._calls.record(call_s, attributes)

    def watch_loop(self, longest_s: Callable[[], float]) -> None:
        """Show the longest time, in seconds of CPU, that one callback has held the event loop."""
        self._instruments.gauge(
            "triptych.event_loop.hold",
            "s",
            "Longest time that one callback held the event loop",
            lambda: [Observation(longest_s())],
        )

    def watch_process(self) -> None:
        """Show this process's CPU, memory, threads and files, under the conventions' names."""
        if self.meter is None:
            return
        import psutil  # late: clients have no metrics of their own, and needn't install it

        process = psutil.Process()
        started_s = process.create_time()

        def cpu() -> list[Observation]:
            times = process.cpu_times()
            return [Observation(times.user, {"cpu.mode": "user"}), Observation(times.system, {"cpu.mode": "system"})]

        make = self._instruments
        make.total("process.cpu.time", "s", "CPU time of the process", cpu)
        for name, unit, about, read in (
            ("process.memory.usage", "By", "Resident memory", lambda: process.memory_info().rss),
            ("process.memory.virtual", "By", "Virtual memory", lambda: process.memory_info().vms),
            ("process.thread.count", "{thread}", "Threads", process.num_threads),
            ("process.unix.file_descriptor.count", "{file_descriptor}", "Open files", process.num_fds),
        ):
            make.amount(name, unit, about, lambda read=read: [Observation(read())])  # type: ignore[misc]
        make.gauge(
            "process.uptime", "s", "Time since the start", lambda: [Observation(max(0.0, time.time() - started_s))]
        )
