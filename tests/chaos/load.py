"""The clients: they send the plan's jobs, follow each to its end, and write down every answer that they get."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.history import Call, Event, Seen
from tests.chaos.plan import Submission
from tests.chaos.stages import Stages
from tests.fleet.watched import WatchedFleet
from triptych import rpc
from triptych.errors import Full, InvalidRequest, NotFound, TriptychError
from triptych.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, GenerationRequest, Job
from triptych_client import AsyncClient
from triptych_client.job_states import is_over
from triptych_client.retry import RetryPolicy

POLICY = RetryPolicy(total_s_max=120.0)
"""Longer than any fault, with the restart that follows it, on a slow machine."""
DIRECT_TIMEOUT_S = 10.0
POLL_S = 0.7
LIST_S = 3.0
PAGE_SIZE = 1000
AUDITOR = "auditor"


class Load:
    """Clients of one fleet."""

    def __init__(self, fleet: WatchedFleet, stages: Stages, folder: Path, elapsed_s: Callable[[], float]) -> None:
        self._fleet, self._stages, self._folder, self._elapsed_s = fleet, stages, folder, elapsed_s
        self._streams = 0
        self.on_update: Callable[[Job], None] = lambda _job: None
        """Told of each update that a watching client gets."""
        self.clients: list[AsyncClient] = []
        self.events: list[Event] = []
        self.acknowledged: dict[str, str] = {}
        """Job by request id."""
        self.unfinished: set[str] = set()
        """Request ids of jobs that are on their way."""
        self._open = asyncio.Event()
        """Whether jobs are sent; set but for the time of `closed`."""
        self._open.set()
        self._creating: set[asyncio.Task[str]] = set()
        self.not_accepted: dict[str, str] = {}
        """Why, by request id: a deadline that was over before the controller was there."""

    @asynccontextmanager
    async def open(self, count: int) -> AsyncIterator[Load]:
        """With so many clients, and the auditor."""
        async with AsyncExitStack() as stack:
            for _number in range(count + 1):
                self.clients.append(await stack.enter_async_context(AsyncClient(self._fleet.endpoint, POLICY)))
            yield self

    async def run(self, submissions: Sequence[Submission]) -> None:
        """Send all of them, each at its time; returns when the last is over and downloaded."""
        async with asyncio.TaskGroup() as group:
            for submission in submissions:
                await asyncio.sleep(max(0.0, submission.at_s - self._elapsed_s()))
                self.unfinished.add(submission.request_id)
                group.create_task(self._one(submission))

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let what is being sent be accepted, and have nothing sent for the length of the block."""
        self._open.clear()
        try:
            if self._creating:
                await asyncio.wait(self._creating, timeout=POLICY.total_s_max)
            yield
        finally:
            self._open.set()

    async def download_again(self, submissions: Sequence[Submission]) -> None:
        """Fetch every result once more: nothing that came late may have touched it."""
        by_request = {submission.request_id: submission for submission in submissions}
        for job in await self.list_all():
            if job.state == JOB_STATE_SUCCEEDED:
                await self._download(by_request[job.request_id], job.job_id)

    async def audit(self) -> None:
        """List all jobs again and again, until cancelled."""
        while True:
            await self.list_all()
            await asyncio.sleep(LIST_S)

    async def list_all(self) -> list[Job]:
        """All jobs, as the controller knows them."""
        listed: list[Job] = []

        async def read() -> list[Job]:
            listed.extend([job async for job in self.clients[-1].list_jobs(page_size=PAGE_SIZE)])
            return listed

        await self._note(AUDITOR, Call.LIST, "", read)
        return listed

    async def _one(self, submission: Submission) -> None:
        await self._open.wait()
        creating = asyncio.create_task(self._create(submission))
        self._creating.add(creating)
        creating.add_done_callback(self._creating.discard)
        job_id = await creating
        if job_id:
            cancelling = asyncio.create_task(self._cancel(submission, job_id))
            follow = self._watch if submission.is_watched else self._poll
            job = await follow(submission, job_id)
            await cancelling
            if job.state == JOB_STATE_SUCCEEDED:
                await self._download(submission, job_id)
        self.unfinished.discard(submission.request_id)

    async def _create(self, submission: Submission) -> str:
        """The job's id, or nothing where it was refused for a deadline that is over."""
        request, number = self._stages.request(submission), submission.client
        if submission.encoder:
            await self._submit_to_encoder(submission, request)
        calls = [self._submit(number, submission, request)]
        if submission.is_repeated:
            calls.append(self._submit((number + 1) % (len(self.clients) - 1), submission, request))
        await asyncio.gather(*calls)
        return self.acknowledged.get(submission.request_id, "")

    async def _submit(self, client: int, submission: Submission, request: GenerationRequest) -> None:
        request_id = submission.request_id

        async def submit() -> list[Job]:
            return [await self.clients[client].submit(request, request_id)]

        try:
            await self._note(f"client-{client}", Call.CREATE, request_id, submit)
        except InvalidRequest as error:
            if submission.deadline_s is None:
                raise
            self.not_accepted[request_id] = str(error)

    async def _submit_to_encoder(self, submission: Submission, request: GenerationRequest) -> None:
        """`EncoderService.Generate`. An encoder that is busy or away is no fault: the controller is asked next."""

        async def generate() -> list[Job]:
            address = self._fleet.addresses[submission.encoder]
            message = encoder_service_pb2.GenerateRequest(request_id=submission.request_id, request=request)
            async with rpc.open_channel(address) as channel:
                stub: Any = encoder_service_pb2_grpc.EncoderServiceStub(channel)
                response = await rpc.translate(stub.Generate(message, timeout=DIRECT_TIMEOUT_S))
            return [response.job]

        try:
            await self._note(
                f"client-{submission.client} at {submission.encoder}", Call.CREATE, submission.request_id, generate
            )
        except TriptychError:
            return  # it is in the history

    async def _cancel(self, submission: Submission, job_id: str) -> None:
        if submission.cancel_after_s is None:
            return
        await asyncio.sleep(submission.cancel_after_s)

        async def cancel() -> list[Job]:
            return [await self.clients[submission.client].cancel_job(job_id)]

        while True:
            try:
                await self._note(f"client-{submission.client}", Call.CANCEL, job_id, cancel)
                return
            except Full:  # the journal's disk: nothing was acknowledged
                await asyncio.sleep(POLL_S)

    async def _poll(self, submission: Submission, job_id: str) -> Job:
        async def get() -> list[Job]:
            return [await self.clients[submission.client].get_job(job_id)]

        while True:
            (job,) = await self._note(f"client-{submission.client}", Call.GET, job_id, get)
            if is_over(job):
                return job
            await asyncio.sleep(POLL_S)

    async def _watch(self, submission: Submission, job_id: str) -> Job:
        self._streams += 1
        stream, job = self._streams, Job()
        base = Event(f"client-{submission.client}", Call.WATCH, self._elapsed_s(), asked=job_id, stream=stream)
        try:
            async for update in self.clients[submission.client].watch_job(job_id):
                job = update.job
                self.on_update(job)
                self.events.append(replace(base, answered_s=self._elapsed_s(), jobs=(Seen.of(job),)))
        except NotFound:
            self.events.append(replace(base, answered_s=self._elapsed_s(), is_missing=True))
            raise
        return job

    async def _download(self, submission: Submission, job_id: str) -> None:
        name, path = f"client-{submission.client}", self._folder / f"{job_id}.npy"
        called_s = self._elapsed_s()
        await self.clients[submission.client].download_result(job_id, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink()
        self.events.append(Event(name, Call.DOWNLOAD, called_s, self._elapsed_s(), job_id, digest=digest))

    async def _note(self, client: str, call: Call, asked: str, do: Callable[[], Awaitable[list[Job]]]) -> list[Job]:
        """Make a call and write it down, with its answer or its error, which is raised."""
        event = Event(client, call, self._elapsed_s(), asked=asked)
        try:
            jobs = await do()
        except NotFound:
            self.events.append(replace(event, answered_s=self._elapsed_s(), is_missing=True))
            raise
        except TriptychError as error:
            self.events.append(replace(event, error=f"{type(error).__name__}: {error}"))
            raise
        shown = tuple(Seen.of(job) for job in jobs)
        self.events.append(replace(event, answered_s=self._elapsed_s(), jobs=shown))
        if call is Call.CREATE:
            self.acknowledged.update((job.request_id, job.job_id) for job in jobs)
        return jobs
