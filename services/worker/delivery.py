"""A decoder's last steps: its outputs become files, the files are stored, the completion names them.

Each attempt stores under its own token (`media.results`). Files that the controller refuses are removed. Files that it
may have accepted stay: the controller removes those that its journal doesn't name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from triptych import telemetry
from triptych.errors import JobCancelled, LeaseLost, ResultsMoved
from triptych.media import encoding, results
from triptych.media.encoding import EncodedArtifact
from triptych.model import rates
from triptych.model.outputs import sampling_rate_hz
from triptych.v1.fleet_service_pb2 import StartPhaseResponse
from triptych.v1.job_pb2 import Artifact
from triptych.v1.model_pb2 import ModelDescription

from .equipment import StageThread
from .link import Link
from .report import PhaseReporter
from .running import Running

log = logging.getLogger(__name__)

FULL_PAUSE_S = 1.0
"""Pause before a result is stored again where the store was full."""
MOVES_MAX = 8
"""How often the result URL may change while one result is delivered."""


class Delivery:
    """The delivery of one decoder."""

    def __init__(self, link: Link, model: ModelDescription, in_thread: StageThread) -> None:
        self._link = link
        self._model = model
        self._in_thread = in_thread

    async def run(
        self, running: Running, started: StartPhaseResponse, outputs: Mapping[str, object], reporter: PhaseReporter
    ) -> None:
        """Encode, store and complete; store again where the result URL has changed by then.

        Raises LeaseLost when the work came too late, JobCancelled when the job is to stop, and what the store raises.
        """
        job_id = running.dispatch.job_id
        files = await self._in_thread(lambda: self._files(started, outputs))
        for _try in range(MOVES_MAX):
            url = self._link.result_url
            token = results.new_token()
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
                await self._link.registered.wait()
            except LeaseLost:  # after any other error the completion may have been accepted, and its answer lost
                if not running.lost:
                    await self._discard(url, job_id, token)
                raise
        raise ResultsMoved(f"the controller's result URL changed {MOVES_MAX} times while this result was stored")

    def _files(self, started: StartPhaseResponse, outputs: Mapping[str, object]) -> list[EncodedArtifact]:
        request = started.request
        return encoding.encode_outputs(
            outputs,
            request.output_format,
            rates.frames_per_second(request, self._model),  # controllers fill it in
            request.output,
            sampling_rate_hz=sampling_rate_hz(self._model),
            metadata_json=started.metadata_json,
        )

    async def _store(self, running: Running, files: list[EncodedArtifact], url: str, token: str) -> list[Artifact]:
        job_id = running.dispatch.job_id

        def store() -> list[Artifact]:
            return [results.store(url, job_id, token, f.name, f.media_type, f.data) for f in files]

        with telemetry.span("result.store", job_id=job_id, rank=running.claimed.lease.rank) as span:
            while True:  # until there is space or the job is to stop; the controller's stall_timeout_s bounds it
                if running.should_stop():
                    raise JobCancelled("the job was cancelled before its result was stored")
                try:
                    artifacts = await self._in_thread(store)
                    break
                except OSError as error:
                    if not results.is_full(error):
                        raise
                    log.warning("the result waits for space: %s", error)
                    await asyncio.sleep(FULL_PAUSE_S)
            span.set_attribute("triptych.size_bytes", sum(a.size_bytes for a in artifacts))
            return artifacts

    async def _discard(self, url: str, job_id: str, token: str) -> None:
        with contextlib.suppress(Exception):  # stores raise anything; the controller removes what is left
            await self._in_thread(lambda: results.discard(url, job_id, token))
