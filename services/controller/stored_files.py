"""Files of results, as clients read them: found among the caller's own jobs, and read in threads."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

from triptych.errors import InvalidRequest, NotFound, WrongState
from triptych.media import results
from triptych.security.identity import caller
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, Artifact, JobState

from .core import Core
from .shares import FairThreads
from .visibility import visible_job

READERS = 16
"""Pieces of results read at a time: a store may be far away, and waiting threads cost nothing. One client has half."""


class StoredFiles:
    """Used on the event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._threads = FairThreads("results", READERS, READERS // 2)

    async def find(self, job_id: str, artifact_index: int, offset_bytes: int = 0) -> Artifact:
        """A file of one of the caller's jobs. Raises NotFound, WrongState, and InvalidRequest for the offset."""
        job = await visible_job(self._core.ledger, job_id)
        if job.state != JOB_STATE_SUCCEEDED:
            raise WrongState(f"job {job_id} is {JobState.Name(job.state)}; only a job that SUCCEEDED has results")
        if artifact_index >= len(job.artifacts):
            raise NotFound(f"job {job_id} has {len(job.artifacts)} artifacts, not {artifact_index + 1}")
        artifact = job.artifacts[artifact_index]
        locate = functools.partial(results.locate, self._core.result_url, artifact, job_id)
        await self._threads.run(caller().name, locate)
        if offset_bytes > artifact.size_bytes:
            raise InvalidRequest("offset_bytes", offset_bytes, f"up to the file's size, {artifact.size_bytes}")
        return artifact

    async def pieces(self, job_id: str, artifact: Artifact, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """The content of a file that was found, from an offset on. Raises SourceCorrupt, also at its end."""
        pieces = results.read(self._core.result_url, artifact, job_id, offset_bytes)
        next_piece = functools.partial(next, pieces, b"")
        while piece := await self._threads.run(caller().name, next_piece):
            yield piece
