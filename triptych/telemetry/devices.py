"""An NVIDIA device as NVML sees it: all its memory, whoever uses it, and how busy it is."""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry.metrics import Observation

from triptych.telemetry.instruments import Instruments

log = logging.getLogger(__name__)


def open_device(uuid: str) -> Device | None:
    """The device with a UUID, with or without NVML's prefix `GPU-`; None without a driver or such a device."""
    if not uuid:
        return None
    import pynvml  # late: few machines have such a device

    try:
        pynvml.nvmlInit()
        return Device(pynvml.nvmlDeviceGetHandleByUUID("GPU-" + uuid.removeprefix("GPU-")))
    except pynvml.NVMLError as error:
        log.info("no metrics of the device %s: %s", uuid, error)
        return None


class Device:
    """One that NVML has opened."""

    def __init__(self, handle: Any) -> None:
        import pynvml

        self._nvml = pynvml
        self._handle = handle
        self._attributes = {
            "hw.id": str(pynvml.nvmlDeviceGetUUID(handle)),
            "hw.name": str(pynvml.nvmlDeviceGetName(handle)),
        }

    def show(self, instruments: Instruments) -> None:
        """Make gauges of it, under the conventions' names."""
        instruments.amount(
            "hw.gpu.memory.usage", "By", "Memory of the device in use", lambda: self._read(lambda: self._memory().used)
        )
        instruments.amount(
            "hw.gpu.memory.limit", "By", "Memory of the device", lambda: self._read(lambda: self._memory().total)
        )
        instruments.gauge(
            "hw.gpu.utilization", "1", "Share of time that it computed", lambda: self._read(self._utilization)
        )

    def _memory(self) -> Any:
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle)

    def _utilization(self) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0

    def _read(self, read: Any) -> list[Observation]:
        """Nothing while a value can't be had: a device that fell off the bus must not take the other metrics along."""
        try:
            return [Observation(read(), self._attributes)]
        except self._nvml.NVMLError:
            return []
