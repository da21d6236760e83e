"""What a worker works with, for as long as it lives."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from triptych import telemetry
from triptych.config import WorkerConfig
from triptych.media.decoding.pool import Decoders
from triptych.stages import AnyStage
from triptych.transport.arena import Arena
from triptych.transport.fetcher import Fetcher
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.worker_pb2 import DriverChoice

from .text_engines import TextEngine

Result = TypeVar("Result")


@dataclass(frozen=True)
class Equipment:
    """A worker's settings, stage, memory and ways to others."""

    config: WorkerConfig
    stage: AnyStage
    model: ModelDescription
    arena: Arena
    fetcher: Fetcher
    mooncake_session: str
    """Empty where Mooncake is off."""
    mooncake: DriverChoice
    """How Mooncake moves tensors, and why."""
    address: str
    """`host:port` of this worker's services."""
    metrics: telemetry.WorkerMetrics
    decoders: Decoders
    """Where the media of requests are decoded."""
    instance_id: str
    """Identity of this start of the process."""
    text_encoder: TextEngine | None = None
    """Where an encoder's text encoders run, if not here."""


class StageThread:
    """The one thread in which a worker's stage runs and its tensors are touched."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="stage")

    async def __call__(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the thread; its log lines and spans know the caller's job."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, work)
