"""Fetching the files of results."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from triptych import limits, rpc
from triptych.errors import DeadlinePassed, SourceCorrupt, TriptychError, Unavailable
from triptych.v1.generation_service_pb2 import DownloadResultRequest
from triptych.v1.job_pb2 import Artifact, Job
from triptych_client.result_files import PartFile
from triptych_client.retry import Attempts, RetryPolicy, closed, transient

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

DOWNLOAD_ATTEMPTS_MAX = 2
"""A file whose digest is wrong is read once more, as rooms are."""


class Downloads:
    """The downloads of one client. Belongs to one event loop."""

    def __init__(self, jobs: GenerationServiceAsyncStub, policy: RetryPolicy, peer: str) -> None:
        self._jobs = jobs
        self._policy = policy
        self._peer = peer

    async def fetch_all(self, job: Job, told: Path, targets: tuple[Path, ...]) -> tuple[Path, ...]:
        """Write all files of a job to their targets. Only `told`, which the caller gave, may be overwritten."""
        for index, target in enumerate(targets):
            await self.fetch(target, job.job_id, index, overwrites=target == told)
        return targets

    async def fetch(self, target: Path, job_id: str, artifact_index: int, *, overwrites: bool = True) -> None:
        """Write a file of a result to `target`, whole or not at all; `overwrites` as `PartFile` has it.

        Raises as the controller does, SourceCorrupt for a content that is wrong twice, Unavailable, DeadlinePassed,
        OSError.
        """
        message = DownloadResultRequest(job_id=job_id, artifact_index=artifact_index)
        for attempt in range(1, DOWNLOAD_ATTEMPTS_MAX + 1):
            try:
                with PartFile(target, overwrites=overwrites) as part:
                    part.check(await _download(self._jobs, message, part, self._policy, self._peer))
                    part.commit()
                break
            except SourceCorrupt:
                if attempt == DOWNLOAD_ATTEMPTS_MAX:
                    raise


async def _download(
    stub: GenerationServiceAsyncStub, message: DownloadResultRequest, part: PartFile, policy: RetryPolicy, peer: str
) -> Artifact:
    """Write a file to `part`, and return what it is said to be. Retries as long as there is progress.

    Each try goes on where the last one ended. It may take as long as any call, and, once the size is known, as long as
    the missing bytes take. Raises as the controller does, Unavailable and DeadlinePassed when no more comes for as long
    as the policy says.
    """
    attempts = Attempts(policy)
    while True:
        before = message.offset_bytes = part.size_bytes
        artifact: Artifact | None = None
        timeout_s = policy.attempt_s_max
        stream = None
        try:
            stream = stub.DownloadResult(message)
            async with asyncio.timeout(timeout_s) as bound:
                async for response in stream:
                    if artifact is None:
                        artifact = response.artifact
                        if response.offset_bytes != part.size_bytes:
                            part.restart()  # an older controller sends all of it
                        missing = max(0, artifact.size_bytes - part.size_bytes)
                        timeout_s += limits.allowance_s(missing, policy.bytes_per_s_min)
                        bound.reschedule(asyncio.get_running_loop().time() + timeout_s)
                    part.write(response.chunk)
            return artifact or Artifact()
        except asyncio.CancelledError:
            if not rpc.was_cut():
                raise
            found: TriptychError = Unavailable(f"the connection to {peer} was given up")
        except grpc.aio.AioRpcError as error:
            found = transient(error, peer)
        except grpc.aio.UsageError as error:
            raise closed() from error
        except TimeoutError:
            had = limits.bytes_text(part.size_bytes)
            had = f"{had} of {limits.bytes_text(artifact.size_bytes)}" if artifact else "nothing"
            found = DeadlinePassed(f"{peer} sent {had} of a result within {timeout_s:.0f} s")
        finally:
            if stream is not None:
                stream.cancel()
        if part.size_bytes > before:
            attempts.reset()
        await attempts.wait(found)
