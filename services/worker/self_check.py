"""A small job that shows whether a worker is well: no other worker and no ring takes part.

It runs the stage up to the first step, on inputs that once succeeded, if there are any; then it stores something and
reads it back: a room in its own arena, and for a decoder also a file where results go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import numpy as np

from triptych.errors import ArenaFull, JobCancelled, RoomGone
from triptych.media import results
from triptych.stages import Step
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import ROLE_DECODER

from .equipment import Equipment, StageThread

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
    pixels = getattr(inputs, "width", 0) * getattr(inputs, "height", 0)
    return int(getattr(inputs, "nbytes", 4 * pixels))


class SelfCheck:
    """The check of one worker."""

    def __init__(self, equipment: Equipment, in_thread: StageThread) -> None:
        self._equipment = equipment
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

    async def run(self, room_id: int, rank: int, result_url: str) -> None:
        """Do the job. Raises the error that it meets, TimeoutError where it takes too long."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._in_thread(self._run_stage)
            if self._equipment.stage.role == ROLE_DECODER:
                await self._in_thread(lambda: results.probe(result_url))
            await self._check_arena(room_id, rank)

    def _run_stage(self) -> None:
        if self._proven is None:
            return  # inputs that have only failed may be at fault themselves
        done: list[Step] = []
        with contextlib.suppress(JobCancelled):  # after the first step
            self._equipment.stage.run(self._proven, done.append, lambda: bool(done))

    async def _check_arena(self, room_id: int, rank: int) -> None:
        """Store a room and read it back. A full arena is well; a registration meanwhile may have released the room."""
        arena = self._equipment.arena
        encoded = codec.encode(STORED, "self-check")
        with contextlib.suppress(ArenaFull, RoomGone):
            ref = await self._in_thread(lambda: arena.put(room_id, encoded.manifest, encoded.buffers))
            try:
                if self._equipment.fetcher.reaches_itself:
                    ref.owner_rank = rank
                    ref.owner_address = self._equipment.address
                    await self._equipment.fetcher.fetch(ref)
            finally:
                arena.release(room_id)
