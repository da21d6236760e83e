"""A decoder's last steps: its outputs become files, the files are stored, the completion names them.

Each attempt stores under a token of its own (`results`). What a controller refuses is removed again; what it may have
accepted, with the answer lost, is left: the controller removes what its journal doesn't name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from triptych import media, results, telemetry
from triptych.errors import JobCancelled, LeaseLost, ResultsMoved
from triptych.link import Link
from triptych.media import EncodedArtifact
from triptych.running import PhaseReporter, Running
from triptych.v1.job_pb2 import Artifact, GenerationRequest
from triptych.v1.model_pb2 import ModelDescription

log = logging.getLogger(__name__)

FULL_PAUSE_S = 1.0
"""Pause before a result is stored again where the store was full: somebody has to make room first."""
MOVES_MAX = 8
"""Controllers with another result URL each that may come while one result is being delivered."""


class Delivery:
    """Of one decoder. `in_thread` runs a call in the stage's thread."""

    def __init__(
        self, link: Link, model: ModelDescription, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self._link, self._model, self._in_thread = link, model, in_thread

    async def run(
        self, running: Running, request: GenerationRequest, outputs: Mapping[str, object], reporter: PhaseReporter
    ) -> None:
        """Encode, store and complete; store again where results go elsewhere by then.

        Raises LeaseLost when the work came too late, JobCancelled when the job is to stop, and what the store does.
        """
        fps = request.frames_per_second or media.frames_per_second(self._model)
        job_id = running.dispatch.job_id
        files = await self._in_thread(lambda: media.encode_outputs(outputs, request.output_format, fps))
        for _try in range(MOVES_MAX):
            url, token = self._link.result_url, results.new_token()
            try:
                artifacts = await self._store(running, files, url, token)
            except BaseException:
                await self._discard(url, job_id, token)
                raise
            try:
                await reporter.complete(artifacts=artifacts, result_url=url)
                return
            except ResultsMoved as error:
                log.warning("the result is stored again: %s", error)
                await self._discard(url, job_id, token)
                await self._link.wait_registered()
            except LeaseLost:  # every other error may come after an acceptance whose answer was lost
                if not running.lost:
                    await self._discard(url, job_id, token)
                raise
        raise ResultsMoved(f"the controller's result URL changed {MOVES_MAX} times while this result was stored")

    async def _store(self, running: Running, files: list[EncodedArtifact], url: str, token: str) -> list[Artifact]:
        job_id = running.dispatch.job_id

        def store() -> list[Artifact]:
            return [results.store(url, job_id, token, f.name, f.media_type, f.data) for f in files]

        with telemetry.span("result.store", job_id=job_id) as span:
            while True:  # until there is space, the job is to stop, or the controller's stall_timeout_s is over
                if running.should_stop():
                    raise JobCancelled("the job was cancelled before its result was stored")
                try:
                    artifacts: list[Artifact] = await self._in_thread(store)
                    break
                except OSError as error:
                    if not results.is_full(error):
                        raise
                    log.warning("the result waits for space: %s", error)
                    await asyncio.sleep(FULL_PAUSE_S)
            span.set_attribute("triptych.size_bytes", sum(a.size_bytes for a in artifacts))
            return artifacts

    async def _discard(self, url: str, job_id: str, token: str) -> None:
        """Where the store fails now, the controller sweeps later."""
        with contextlib.suppress(Exception):  # stores raise anything
            await self._in_thread(lambda: results.discard(url, job_id, token))
