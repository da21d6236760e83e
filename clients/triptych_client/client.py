"""The client for asyncio. `triptych_client.sync.Client` is the same for everybody else."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Unpack

import grpc

from triptych import auth, config, rpc, telemetry
from triptych.errors import DeadlinePassed, Full, InvalidRequest, SourceCorrupt, TriptychError, Unavailable
from triptych.v1 import (
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    job_pb2,
    model_pb2,
)
from triptych_client.files import PartFile, check_folder, output_format, output_paths
from triptych_client.jobs import Generated, check_succeeded, is_over
from triptych_client.request import GenerationFields, build_request
from triptych_client.retry import Backoff, RetryPolicy, call, error_of, is_worth_retrying

PAGE_SIZE = 100
"""Jobs asked for at once: a few tens of KiB."""

DOWNLOAD_ATTEMPTS_MAX = 2
"""A file whose digest is wrong is read once more, as rooms are."""

DOWNLOAD_TIMEOUT_S = 3600.0
"""Longest download of one file: many GiB over a slow line."""

Watcher = Callable[[generation_service_pb2.WatchJobResponse], None]
"""Told of each change of a job."""


class AsyncClient:
    """A connection to a controller. Retries what is safe to retry, which is everything.

    All methods raise classes of `triptych.errors`: Unavailable when the controller can't be reached for as long as the
    policy says, InvalidRequest, NotFound and so on as the service documents.
    """

    def __init__(
        self, endpoint: str, retry: RetryPolicy | None = None, access: config.ClientAccess | None = None
    ) -> None:
        """`access` is how the client proves who it is; by default as the environment says (`TRIPTYCH_TLS` …)."""
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise InvalidRequest("endpoint", endpoint, "host:port, for example 127.0.0.1:7070")
        self.endpoint = endpoint
        self._retry = retry or RetryPolicy()
        access = access or config.client_access()
        security = auth.open_security(access.tls, "", access.token_file, access.token)
        self._channel = rpc.open_channel(endpoint, security)
        self._jobs = generation_service_pb2_grpc.GenerationServiceStub(self._channel)
        self._fleet = fleet_service_pb2_grpc.FleetServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def create_job(
        self, prompt: str = "", *, request_id: str = "", **fields: Unpack[GenerationFields]
    ) -> job_pb2.Job:
        """Have a job accepted. A full backlog or quota is waited for, as an absent controller is.

        `request_id` is drawn where none is given, so that retries make one job. Raises InvalidRequest for what the
        model can't take, AlreadyExists when `request_id` was used for another request, and a subclass of Full.
        """
        return await self.submit(build_request(prompt, **fields), request_id)

    async def submit(self, request: job_pb2.GenerationRequest, request_id: str = "") -> job_pb2.Job:
        """As `create_job`, from a ready message."""
        message = generation_service_pb2.CreateJobRequest(request_id=request_id or str(uuid.uuid4()), request=request)
        response = await call(
            lambda timeout_s: self._jobs.CreateJob(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.job

    async def get_job(self, job_id: str) -> job_pb2.Job:
        """Return a job. Raises NotFound."""
        message = generation_service_pb2.GetJobRequest(job_id=job_id)
        response = await call(
            lambda timeout_s: self._jobs.GetJob(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.job

    async def list_jobs(
        self,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        page_size: int = PAGE_SIZE,
        *,
        dead_letters_only: bool = False,
    ) -> AsyncGenerator[job_pb2.Job, None]:
        """Yield jobs, newest first, page by page; only those in one of `states`, where some are given.

        Dead letters are jobs that FAILED because they were tried too often; see `retry_job`.
        """
        message = generation_service_pb2.ListJobsRequest(
            page_size=page_size, states=states, dead_letters_only=dead_letters_only
        )
        while True:
            response = await call(
                lambda timeout_s: self._jobs.ListJobs(message, timeout=timeout_s), self._retry, self.endpoint
            )
            for job in response.jobs:
                yield job
            if not response.next_page_token:
                return
            message.page_token = response.next_page_token

    async def watch_job(
        self, job_id: str, timeout_s: float | None = None
    ) -> AsyncGenerator[generation_service_pb2.WatchJobResponse, None]:
        """Yield a job's present state, then each change, until it is over; resumes when the controller comes back.

        Raises NotFound, DeadlinePassed after `timeout_s`, Unavailable when the controller stays away, and WatchesFull
        when it keeps refusing one more watch.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        backoff = Backoff(self._retry)
        seen: job_pb2.Job | None = None
        while True:
            remaining_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
            found: TriptychError = Unavailable(f"{self.endpoint} ended the stream before {job_id} was over")
            try:
                stream = self._jobs.WatchJob(generation_service_pb2.WatchJobRequest(job_id=job_id), timeout=remaining_s)
                async for update in stream:
                    backoff.reset()
                    if update.job != seen or update.preview_png:
                        yield update
                    seen = update.job
                    if is_over(seen):
                        return
            except grpc.aio.AioRpcError as error:
                if end_s is not None and time.monotonic() >= end_s:
                    raise DeadlinePassed(f"{job_id} was not over after {timeout_s:g} s") from error
                found = error_of(error, self.endpoint)
                if not is_worth_retrying(error, found):
                    raise found from error
                if not isinstance(found, Full):
                    found = Unavailable(str(found))
            await backoff.wait(found)

    async def cancel_job(self, job_id: str) -> job_pb2.Job:
        """Ask for a job to stop, and return it. One that is over stays as it is. Raises NotFound."""
        message = generation_service_pb2.CancelJobRequest(job_id=job_id)
        response = await call(
            lambda timeout_s: self._jobs.CancelJob(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.job

    async def retry_job(self, job_id: str) -> job_pb2.Job:
        """Have the request of a dead letter accepted as a new job, the same however often this is called.

        Raises NotFound, WrongState for a job that is no dead letter, and as `create_job`.
        """
        message = generation_service_pb2.RetryJobRequest(job_id=job_id)
        response = await call(
            lambda timeout_s: self._jobs.RetryJob(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.job

    async def discard_jobs(self, model_digest: str) -> int:
        """End all jobs that wait for a model that the fleet doesn't serve; how many. For administrators.

        Raises InvalidRequest for what is no digest (or its first 12 digits), WrongState for the fleet's own model.
        """
        message = generation_service_pb2.DiscardJobsRequest(model_digest=model_digest)
        response = await call(
            lambda timeout_s: self._jobs.DiscardJobs(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.job_count

    async def download_result(self, job_id: str, path: Path | str, artifact_index: int = 0) -> Path:
        """Write one file of a result to `path`, under a temporary name until its SHA-256 is found right.

        Raises NotFound, WrongState (the job hasn't succeeded), SourceCorrupt (twice another content than was stored),
        InvalidRequest for a path that can't be written, OSError for a disk that is full.
        """
        target = Path(path)
        check_folder(target)
        message = generation_service_pb2.DownloadResultRequest(job_id=job_id, artifact_index=artifact_index)
        for attempt in range(1, DOWNLOAD_ATTEMPTS_MAX + 1):
            try:
                await call(lambda _timeout_s: self._download(message, target), self._retry, self.endpoint)
                break
            except SourceCorrupt:
                if attempt == DOWNLOAD_ATTEMPTS_MAX:
                    raise
        return target

    async def _download(self, message: generation_service_pb2.DownloadResultRequest, path: Path) -> None:
        artifact: job_pb2.Artifact | None = None
        with PartFile(path) as part:
            async for response in self._jobs.DownloadResult(message, timeout=DOWNLOAD_TIMEOUT_S):
                if artifact is None:
                    artifact = response.artifact
                part.write(response.chunk)
            part.check(artifact or job_pb2.Artifact())
            part.commit()

    async def download_results(self, job: job_pb2.Job, path: Path | str) -> tuple[Path, ...]:
        """Write all files of a job that succeeded: to `path`, or numbered beside it where there are several."""
        paths = output_paths(Path(path), [artifact.name for artifact in job.artifacts])
        for index, target in enumerate(paths):
            await self.download_result(job.job_id, target, index)
        return paths

    async def describe_model(self) -> model_pb2.ModelDescription:
        """Return what the loaded model accepts."""
        message = generation_service_pb2.DescribeModelRequest()
        response = await call(
            lambda timeout_s: self._jobs.DescribeModel(message, timeout=timeout_s), self._retry, self.endpoint
        )
        return response.model

    async def get_fleet(self) -> fleet_service_pb2.GetFleetResponse:
        """Return workers, rings and job counts."""
        message = fleet_service_pb2.GetFleetRequest()
        return await call(
            lambda timeout_s: self._fleet.GetFleet(message, timeout=timeout_s), self._retry, self.endpoint
        )

    async def generate(
        self,
        prompt: str,
        path: Path | str,
        *,
        request_id: str = "",
        on_update: Watcher | None = None,
        **fields: Unpack[GenerationFields],
    ) -> Generated:
        """Create a job, watch it to its end and download what it made, as one trace.

        The format follows from the suffix of `path` unless `output_format` says otherwise. Raises JobFailed,
        JobCancelled or DeadlinePassed when the job ends otherwise, and all that the single calls raise.
        """
        target = Path(path)
        check_folder(target)
        if not fields.get("output_format"):
            fields["output_format"] = output_format(target)
        with telemetry.span("generate") as span:
            job = await self.create_job(prompt, request_id=request_id, **fields)
            span.set_attribute("triptych.job_id", job.job_id)
            async for update in self.watch_job(job.job_id):
                job = update.job
                if on_update is not None:
                    on_update(update)
            check_succeeded(job)
            return Generated(job, await self.download_results(job, target))
