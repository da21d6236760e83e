"""One file of a result over the wire: each try goes on where the last one ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from triptych import limits
from triptych.errors import DeadlinePassed, TriptychError
from triptych.v1 import generation_service_pb2, job_pb2
from triptych_client.result_files import PartFile
from triptych_client.retry import Attempts, RetryPolicy, transient

if TYPE_CHECKING:  # it exists for type checkers only
    from triptych.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub


async def download(
    stub: GenerationServiceAsyncStub,
    message: generation_service_pb2.DownloadResultRequest,
    part: PartFile,
    policy: RetryPolicy,
    peer: str,
) -> job_pb2.Artifact:
    """Write a file to `part`, and return what it is said to be. Retries as long as there is progress.

    Raises as the controller does, Unavailable and DeadlinePassed when no more comes for as long as the policy says.
    """
    attempts = Attempts(policy)
    while True:
        before = message.offset_bytes = part.size_bytes
        try:
            return await _receive(stub, message, part, policy, peer)
        except grpc.aio.AioRpcError as error:
            found: TriptychError = transient(error, peer)
        except DeadlinePassed as error:
            found = error
        if part.size_bytes > before:
            attempts.reset()
        await attempts.wait(found)


async def _receive(
    stub: GenerationServiceAsyncStub,
    message: generation_service_pb2.DownloadResultRequest,
    part: PartFile,
    policy: RetryPolicy,
    peer: str,
) -> job_pb2.Artifact:
    """One try. It may take as long as any call, and, once the size is known, as long as the missing bytes take."""
    artifact: job_pb2.Artifact | None = None
    stream = stub.DownloadResult(message)
    timeout_s = policy.attempt_s_max
    try:
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
    except TimeoutError as error:
        had = (
            f"{limits.bytes_text(part.size_bytes)} of {limits.bytes_text(artifact.size_bytes)}"
            if artifact
            else "nothing"
        )
        raise DeadlinePassed(f"{peer} sent {had} of a result within {timeout_s:.0f} s") from error
    finally:
        stream.cancel()
    return artifact or job_pb2.Artifact()
