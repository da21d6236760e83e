"""Makes a meter's instruments as all are here: with boundaries that fit, and counters that exist from the start."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, NoOpMeter, Observation

SECONDS_BOUNDARIES = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 300.0, 600.0, 1200.0, 2400.0, 3600.0)
"""Of histograms of phases and jobs: from a hand-off in shared memory to the hour that a ten-minute video's denoising
takes, the factors smaller where times are long."""

Read = Callable[[], Iterable[Observation]]
"""Reads what a gauge shows. It is called from the thread that serves or sends metrics, so it only reads."""


class Instruments:
    """The maker. Without a meter nothing that it makes does anything."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter or NoOpMeter("triptych")

    def seconds(self, name: str, about: str, boundaries: Sequence[float] = SECONDS_BOUNDARIES) -> Histogram:
        """A histogram of times."""
        return self._meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=list(boundaries))

    def count(self, name: str, unit: str, about: str, **labels: Sequence[str]) -> Counter:
        """A counter that is 0 for each combination of its labels' values: a rate needs the value before an event."""
        counter = self._meter.create_counter(name, unit, about)
        for values in itertools.product(*labels.values()):
            counter.add(0, dict(zip(labels, values, strict=True)))
        return counter

    def gauge(self, name: str, unit: str, about: str, read: Read) -> None:
        """A value as it is when it is read, that nobody would add up: a share, a maximum, a yes or no."""
        self._meter.create_observable_gauge(name, [_callback(read)], unit, about)

    def amount(self, name: str, unit: str, about: str, read: Read) -> None:
        """What there is of something when it is read; processes' amounts add up."""
        self._meter.create_observable_up_down_counter(name, [_callback(read)], unit, about)

    def total(self, name: str, unit: str, about: str, read: Read) -> None:
        """A counter that is kept elsewhere."""
        self._meter.create_observable_counter(name, [_callback(read)], unit, about)


def _callback(read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: read()
