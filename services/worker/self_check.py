"""A small job of a worker's own, which shows whether it is well: no other worker and no ring takes part.

It runs the stage up to the first step, on inputs that once succeeded, if there are any; then it stores something and
reads it back: a room in its own arena, and for a decoder also a file where results go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from triptych.errors import ArenaFull, JobCancelled, RoomGone
from triptych.media import results
from triptych.stages import AnyStage, Step
from triptych.transport import codec
from triptych.transport.arena import Arena
from triptych.transport.fetcher import Fetcher
from triptych.v1.dispatch_pb2 import ROLE_DECODER

log = logging.getLogger(__name__)

SAMPLE_BYTES_MAX = 64 * 2**20
"""Largest inputs that are kept for a check: Wan's latents at 720p are 20 MB."""
TIMEOUT_S = 120.0
"""Bound of a check. One step, or one decode, of the largest models takes less on the devices that can run them."""
STORED = {"self_check": np.arange(4096, dtype=np.uint8)}


def size_of(inputs: object) -> int:
    """About how many bytes an encoder's inputs take: pictures, arrays and texts, at any depth."""
    if isinstance(inputs, Mapping):
        return sum(map(size_of, inputs.values()))
    if isinstance(inputs, list | tuple):
        return sum(map(size_of, inputs))
    if isinstance(inputs, str | bytes):
        return len(inputs)
    width, height = getattr(inputs, "width", 0), getattr(inputs, "height", 0)
    return int(getattr(inputs, "nbytes", 4 * width * height))


class SelfCheck:
    """The check of one worker. `in_thread` runs a call in the stage's thread."""

    def __init__(
        self,
        stage: AnyStage,
        arena: Arena,
        fetcher: Fetcher,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._stage = stage
        self._arena = arena
        self._fetcher = fetcher
        self._in_thread = in_thread
        self._newest: Mapping[str, object] | None = None
        """What the stage was given last."""
        self._proven: Mapping[str, object] | None = None
        """What the stage was given last with success."""

    def began(self, inputs: Mapping[str, object], size_bytes: int) -> None:
        """The stage is given these inputs."""
        self._newest = inputs if size_bytes <= SAMPLE_BYTES_MAX else None

    def succeeded(self) -> None:
        """The job that began last is done: its inputs are good."""
        self._proven = self._newest or self._proven

    async def run(self, room_id: int, rank: int, address: str, result_url: str) -> None:
        """Do the job. Raises the error that it meets, TimeoutError where it takes too long."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._in_thread(self._run_stage)
            if self._stage.role == ROLE_DECODER:
                await self._in_thread(lambda: results.probe(result_url))
            await self._check_arena(room_id, rank, address)

    def _run_stage(self) -> None:
        if self._proven is None:
            return  # inputs that have only failed may be at fault themselves
        done: list[Step] = []
        with contextlib.suppress(JobCancelled):  # after the first step
            self._stage.run(self._proven, done.append, lambda: bool(done))

    async def _check_arena(self, room_id: int, rank: int, address: str) -> None:
        """Store a room and read it back. A full arena is well; a registration meanwhile may have released the room."""
        encoded = codec.encode(STORED, "self-check")
        with contextlib.suppress(ArenaFull, RoomGone):
            ref = await self._in_thread(lambda: self._arena.put(room_id, encoded.manifest, encoded.buffers))
            try:
                if self._fetcher.reaches_itself:
                    ref.owner_rank = rank
                    ref.owner_address = address
                    await self._fetcher.fetch(ref)
            finally:
                self._arena.release(room_id)
