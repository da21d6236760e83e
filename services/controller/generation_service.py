"""GenerationService: decode, call the controller, encode."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator

from triptych import rpc
from triptych.errors import InvalidRequest, WatchesFull
from triptych.rpc import Context
from triptych.security.identity import caller
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1 import generation_service_pb2_grpc as pb_grpc
from triptych.v1.job_pb2 import JobState

from .core import Core
from .lifecycle import Lifecycle
from .shares import counted
from .stored_files import StoredFiles
from .visibility import visible_client, visible_job

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000
"""Jobs in one page: bounds a response to about a megabyte."""
WATCH_SHARES = 2
"""One client may hold this part of all watches: half, so that nobody alone can shut the others out."""
_NEWEST = 2**62


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """The front door."""

    def __init__(self, core: Core, lifecycle: Lifecycle, stored: StoredFiles) -> None:
        self._core = core
        self._stored = stored
        self._lifecycle = lifecycle
        self._watches: Counter[str] = Counter()
        """Open ones, by client."""

    @rpc.uninterrupted
    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        job = await self._lifecycle.create(request.request_id, request.request, caller())
        return pb.CreateJobResponse(job=job)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=await visible_job(self._core.ledger, request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        size = request.page_size or PAGE_SIZE_DEFAULT
        if not 1 <= size <= PAGE_SIZE_MAX:
            raise InvalidRequest("page_size", request.page_size, f"1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
        states = set(request.states)
        for state in states.difference(JobState.values()[1:]):
            raise InvalidRequest("states", state, ", ".join(name for name in JobState.keys()[1:]))
        before = _sequence_of(request.page_token) if request.page_token else _NEWEST
        ledger = self._core.ledger
        page, has_more = await ledger.journal.page(
            sorted(states),
            before,
            size,
            client=visible_client(),
            dead_only=request.dead_letters_only,
            job_id_prefix=request.job_id_prefix,
        )
        token = _token_of(page[-1][0]) if has_more else ""
        found = [ledger.describe(entry) for _sequence, entry in page]
        return pb.ListJobsResponse(jobs=found, next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        watches_max = self._core.config.watches_max
        client = caller().name
        share = max(1, watches_max // WATCH_SHARES) if client else watches_max
        if self._watches.total() >= watches_max:
            raise WatchesFull(f"{watches_max} watches are open, the most that are kept; try again later")
        if self._watches[client] >= share:
            raise WatchesFull(f"client {client!r} has {share} watches open, the most of one client; try again later")
        with counted(self._watches, client):
            await visible_job(self._core.ledger, request.job_id)
            async for response in self._core.ledger.watch(request.job_id):
                yield response

    @rpc.uninterrupted
    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        await visible_job(self._core.ledger, request.job_id)
        return pb.CancelJobResponse(job=await self._lifecycle.cancel(request.job_id))

    @rpc.uninterrupted
    async def RetryJob(self, request: pb.RetryJobRequest, context: Context) -> pb.RetryJobResponse:
        await visible_job(self._core.ledger, request.job_id)
        return pb.RetryJobResponse(job=await self._lifecycle.retry(request.job_id, caller()))

    @rpc.uninterrupted
    async def DiscardJobs(self, request: pb.DiscardJobsRequest, context: Context) -> pb.DiscardJobsResponse:
        return pb.DiscardJobsResponse(job_count=await self._lifecycle.discard(request.model_digest))

    async def DownloadResult(
        self, request: pb.DownloadResultRequest, context: Context
    ) -> AsyncIterator[pb.DownloadResultResponse]:
        artifact = await self._stored.find(request.job_id, request.artifact_index, request.offset_bytes)
        yield pb.DownloadResultResponse(artifact=artifact, offset_bytes=request.offset_bytes)
        async for chunk in self._stored.pieces(request.job_id, artifact, request.offset_bytes):
            yield pb.DownloadResultResponse(chunk=chunk)

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Context) -> pb.DescribeModelResponse:
        return pb.DescribeModelResponse(model=self._core.model.described())


def _token_of(sequence: int) -> str:
    return base64.urlsafe_b64encode(str(sequence).encode()).decode()


def _sequence_of(token: str) -> int:
    try:
        sequence = int(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        sequence = -1
    if not 0 <= sequence <= _NEWEST:  # SQLite's integers have 64 bits
        raise InvalidRequest("page_token", token, "next_page_token of an earlier page")
    return sequence
