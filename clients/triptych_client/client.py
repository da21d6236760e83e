"""The client for asyncio. `triptych_client.sync.Client` is the same without asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar, Unpack

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych import addresses, environment, limits, rpc, telemetry
from triptych.environment import ClientAccess, client_access
from triptych.errors import (
    DeadlinePassed,
    InvalidRequest,
    TriptychError,
    Unavailable,
    Unreachable,
)
from triptych.security import auth
from triptych.v1 import (
    file_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    job_pb2,
    model_pb2,
)
from triptych_client.downloading import Downloads
from triptych_client.job_states import Generated, check_succeeded, is_over
from triptych_client.request import GenerationFields, build_request
from triptych_client.result_files import (
    check_free,
    check_outputs,
    check_target,
    output_format,
    output_paths,
    spare_paths,
)
from triptych_client.retry import Attempts, RetryPolicy, call_method, closed, transient
from triptych_client.uploading import Uploads

Response = TypeVar("Response")

log = logging.getLogger(__name__)

PAGE_SIZE = 100
"""Jobs asked for in one call: a few tens of KiB."""

GEN_AI = {"gen_ai.operation.name": "generate_content", "gen_ai.provider.name": "triptych"}
"""Attributes of a generation by OpenTelemetry's conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/)."""

Watcher = Callable[[generation_service_pb2.WatchJobResponse], None]
"""Told of each change of a job."""


class AsyncClient:
    """A connection to a controller. Every call is safe to repeat, and is repeated.

    All methods raise classes of `triptych.errors`: Unavailable when the controller can't be reached for as long as the
    policy says, InvalidRequest, NotFound and so on as the service documents.
    """

    def __init__(
        self,
        endpoint: str,
        retry: RetryPolicy | None = None,
        access: ClientAccess | None = None,
        proxy: str | None = None,
    ) -> None:
        """`endpoint` is the controller's host:port, or those of several with commas, of which one is active.

        `access` is how the client proves who it is; by default as the environment says (`TRIPTYCH_TLS` …).

        `proxy` is the URL of an HTTP proxy, by default that of `TRIPTYCH_PROXY`; empty for none. This machine
        is never reached through one.
        """
        several = addresses.parse_several("endpoint", endpoint)
        address = several[0]
        self.endpoint = ",".join(map(str, several))
        through = environment.proxy_for(address.host, proxy)
        self._peer = self.endpoint
        """The controller, and the way to it: for errors."""
        if through is not None:
            self._peer += f", through the proxy {through},"
        elif not addresses.is_loopback(address.host) and (ignored := environment.ignored_proxy()):
            self._peer += f", without the proxy of {ignored} (only TRIPTYCH_PROXY counts),"
        self._retry = retry or RetryPolicy()
        access = access or client_access()
        security = auth.open_security(access.tls, "", access.token_file, access.token)
        self._channel = rpc.open_channel(self.endpoint, security, through)
        self._jobs = generation_service_pb2_grpc.GenerationServiceStub(self._channel)
        self._fleet = fleet_service_pb2_grpc.FleetServiceStub(self._channel)
        self._uploads = Uploads(file_service_pb2_grpc.FileServiceStub(self._channel), self._retry, self._peer)
        self._downloads = Downloads(self._jobs, self._retry, self._peer)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls under way, and later ones, raise WrongState."""
        await self._channel.close()

    async def _call(self, method: Callable[..., Awaitable[Response]], message: Message) -> Response:
        """Call a method of a server until it answers, within the policy."""
        return await call_method(method, message, self._retry, self._peer)

    async def check_reachable(self) -> None:
        """Return when a server gives any answer. Raises Unreachable where none does."""
        health = health_pb2_grpc.HealthStub(self._channel)
        try:
            await self._call(health.Check, health_pb2.HealthCheckRequest())
        except Unreachable:
            raise
        except TriptychError as error:
            log.debug("the server answers: %s", error)

    async def create_job(
        self, prompt: str = "", *, request_id: str = "", **fields: Unpack[GenerationFields]
    ) -> job_pb2.Job:
        """Have a job accepted. A full backlog or quota is waited for, as an absent controller is.

        `request_id` is drawn where none is given, so that retries make one job. Raises InvalidRequest for what the
        model can't take, AlreadyExists when `request_id` was used for another request, and a subclass of Full.
        """
        return await self.submit(build_request(prompt, **fields), request_id)

    async def submit(self, request: job_pb2.GenerationRequest, request_id: str = "") -> job_pb2.Job:
        """As `create_job`, from a ready message. Its large files go ahead of it, as uploads."""
        return await self._uploads.submit(self._jobs, request, request_id or str(uuid.uuid4()))

    async def get_job(self, job_id: str) -> job_pb2.Job:
        """Return a job. Raises NotFound."""
        response = await self._call(self._jobs.GetJob, generation_service_pb2.GetJobRequest(job_id=job_id))
        return response.job

    async def list_jobs(
        self,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        page_size: int = PAGE_SIZE,
        *,
        dead_letters_only: bool = False,
        job_id_prefix: str = "",
    ) -> AsyncGenerator[job_pb2.Job, None]:
        """Yield jobs, newest first, page by page; only those in one of `states`, where some are given.

        Dead letters are jobs that FAILED because they were tried too often; see `retry_job`. With `job_id_prefix`, only
        jobs whose ids begin so.
        """
        message = generation_service_pb2.ListJobsRequest(
            page_size=page_size, states=states, dead_letters_only=dead_letters_only, job_id_prefix=job_id_prefix
        )
        while True:
            response = await self._call(self._jobs.ListJobs, message)
            for job in response.jobs:
                if job.job_id.startswith(job_id_prefix):  # older controllers don't know of prefixes
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
        end_s = None if timeout_s is None else time.monotonic() + limits.check_seconds("timeout_s", timeout_s)
        attempts = Attempts(self._retry)
        seen: job_pb2.Job | None = None
        while True:
            remaining_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
            found: TriptychError = Unavailable(f"{self._peer} ended the stream before {job_id} was over")
            try:
                stream = self._jobs.WatchJob(generation_service_pb2.WatchJobRequest(job_id=job_id), timeout=remaining_s)
                async for update in stream:
                    attempts.reset()
                    if update.job != seen or update.preview_png:
                        yield update
                    seen = update.job
                    if is_over(seen):
                        return
            except asyncio.CancelledError:
                if not rpc.was_cut():
                    raise
            except grpc.aio.UsageError as error:
                raise closed() from error
            except grpc.aio.AioRpcError as error:
                if end_s is not None and time.monotonic() >= end_s:
                    raise DeadlinePassed(f"{job_id} was not over after {timeout_s:g} s") from error
                found = transient(error, self._peer)
            await attempts.wait(found)

    async def cancel_job(self, job_id: str) -> job_pb2.Job:
        """Ask for a job to stop, and return it. One that is over stays as it is. Raises NotFound."""
        response = await self._call(self._jobs.CancelJob, generation_service_pb2.CancelJobRequest(job_id=job_id))
        return response.job

    async def retry_job(self, job_id: str) -> job_pb2.Job:
        """Have the request of a dead letter accepted as a new job, the same however often this is called.

        Raises NotFound, WrongState for a job that is no dead letter, and as `create_job`.
        """
        response = await self._call(self._jobs.RetryJob, generation_service_pb2.RetryJobRequest(job_id=job_id))
        return response.job

    async def discard_jobs(self, model_digest: str) -> int:
        """End all jobs that wait for a model that the fleet doesn't serve; how many. For administrators.

        Raises InvalidRequest for a text that is neither a digest nor its first 12 digits, WrongState for the
        fleet's own model.
        """
        response = await self._call(
            self._jobs.DiscardJobs, generation_service_pb2.DiscardJobsRequest(model_digest=model_digest)
        )
        return response.job_count

    async def download_result(self, job_id: str, path: Path | str, artifact_index: int = 0) -> Path:
        """Write one file of a result to `path`, under a temporary name until its SHA-256 is found right.

        Raises NotFound, WrongState (the job hasn't succeeded), SourceCorrupt (twice another content than was stored),
        InvalidRequest for a path that can't be written, OSError for a disk that is full.
        """
        target = Path(path)
        check_target(target)
        await self._downloads.fetch(target, job_id, artifact_index)
        return target

    async def download_results(self, job: job_pb2.Job, path: Path | str) -> tuple[Path, ...]:
        """Write all files of a job that succeeded: to `path`, or numbered beside it where there are several.

        What is at `path` is overwritten, and nothing else: InvalidRequest where one of the other names is taken.
        """
        told = Path(path)
        targets = output_paths(told, [artifact.name for artifact in job.artifacts])
        for target in targets:
            if target != told:
                check_free(target)
        return await self._downloads.fetch_all(job, told, targets)

    async def describe_model(self) -> model_pb2.ModelDescription:
        """Return what the loaded model accepts."""
        response = await self._call(self._jobs.DescribeModel, generation_service_pb2.DescribeModelRequest())
        return response.model

    async def get_fleet(self) -> fleet_service_pb2.GetFleetResponse:
        """Return workers, rings and job counts."""
        return await self._call(self._fleet.GetFleet, fleet_service_pb2.GetFleetRequest())

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

        The format follows from the suffix of `path`; what is there is overwritten, and nothing else is. `on_update` is
        told of the accepted job first, then of each change. Raises JobFailed, JobCancelled or DeadlinePassed when the
        job ends otherwise, and all that the single calls raise.
        """
        target = Path(path)
        check_outputs(target, fields.get("num_outputs") or 1)
        asked = fields.get("output_format")
        if asked and asked != output_format(target):
            raise InvalidRequest("output", str(target), f"a file name that ends in .{asked}, as the output format is")
        fields["output_format"] = output_format(target)
        with telemetry.span("generate", kind="client", also=GEN_AI) as span:
            job = await self.create_job(prompt, request_id=request_id, **fields)
            span.set_attributes({"triptych.job_id": job.job_id, "gen_ai.request.model": job.model})
            if on_update is not None:
                on_update(generation_service_pb2.WatchJobResponse(job=job))
            async for update in self.watch_job(job.job_id):
                job = update.job
                if on_update is not None:
                    on_update(update)
            check_succeeded(job)
            # The result is kept: where its name was taken meanwhile, the new one has a part of the job's id.
            targets = spare_paths(target, [artifact.name for artifact in job.artifacts], job.job_id)
            size_bytes = sum(artifact.size_bytes for artifact in job.artifacts)
            with telemetry.span("result.download", job_id=job.job_id, size_bytes=size_bytes):
                return Generated(job, await self._downloads.fetch_all(job, target, targets))
