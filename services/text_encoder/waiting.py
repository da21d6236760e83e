"""Calls that wait for the models' thread, and which of them it takes at once.

One call runs as soon as the thread is free. Calls that came meanwhile for the same module run together, up to a bound;
an idle thread may also wait for more. Everything belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.config import TextEncoderConfig
from triptych.errors import Full
from triptych.telemetry.text_encoder_metrics import TextEncoderMetrics
from triptych.transport.codec import Encoded

if TYPE_CHECKING:  # it imports torch, and the process serves before that
    from .models import Models

CALLS_WAITING_MAX = 1024
"""Most calls that wait: encoders have one call each, and no machine has more of them."""


@dataclass(frozen=True, eq=False)
class _Call:
    component: str
    module: str
    inputs: bytes
    wanted: tuple[str, ...]
    answer: asyncio.Future[Encoded]


class Waiting:
    """The calls that wait. `run` takes them, for as long as the process lives."""

    def __init__(self, models: Models, config: TextEncoderConfig, metrics: TextEncoderMetrics) -> None:
        self._models = models
        self._metrics = metrics
        self._size_max = 1 if config.batching == "off" else config.batch_size_max
        self._wait_s = config.batch_wait_ms_max / 1000
        self._calls: deque[_Call] = deque()
        self._come = asyncio.Event()

    async def answer(self, component: str, module: str, inputs: bytes, wanted: tuple[str, ...]) -> Encoded:
        """What a call's room holds. Raises Full, and what the model raises."""
        if len(self._calls) >= CALLS_WAITING_MAX:
            raise Full(f"{CALLS_WAITING_MAX} calls wait for this text encoder")
        call = _Call(component, module, inputs, wanted, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._come.set()
        return await call.answer

    async def run(self) -> None:
        """Take calls until it is cancelled."""
        while True:
            if not self._calls:
                self._come.clear()
                await self._come.wait()
                await self._wait_for_more()
            await self._run(self._take())

    async def _wait_for_more(self) -> None:
        """Wait until a batch is full, or for `batch_wait_ms_max`."""
        end_s = time.monotonic() + self._wait_s
        while len(self._calls) < self._size_max and (left_s := end_s - time.monotonic()) > 0:
            self._come.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._come.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Call]:
        """The first call, and those for the same module, in their order."""
        first = self._calls[0]
        same = [call for call in self._calls if (call.component, call.module) == (first.component, first.module)]
        taken = same[: self._size_max]
        self._calls = deque(call for call in self._calls if call not in taken)
        return taken

    async def _run(self, taken: list[_Call]) -> None:
        first = taken[0]
        asked = [(call.inputs, call.wanted) for call in taken]
        started_s = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            encoded, together = await loop.run_in_executor(
                self._models.thread, self._models.answers, first.component, first.module, asked
            )
        except Exception as error:  # noqa: BLE001  (a model may raise anything; the callers are told)
            if len(taken) > 1:  # it may be one call's fault
                for call in taken:
                    await self._run([call])
                return
            first.answer.set_exception(error)
            return
        self._metrics.ran(time.monotonic() - started_s, together)
        for call, one in zip(taken, encoded, strict=True):
            call.answer.set_result(one)
