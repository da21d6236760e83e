"""Accepts jobs: checks them against the model, the fleet, the backlog and the client's quota, and writes them down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from weakref import WeakValueDictionary

from triptych import errors, ids, limits, rpc, telemetry
from triptych.model import adapters, costs
from triptych.model.fields import check_deadline
from triptych.model.inputs import Inputs, resolve
from triptych.security.identity import Identity
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import JOB_STATE_QUEUED, PRIORITY_NORMAL, GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription

from .core import Core
from .journal_file import digest_of
from .ledger import is_past_deadline
from .media_checks import MediaChecks
from .shares import counted
from .uploads import whole_bytes

log = logging.getLogger(__name__)

REQUEST_ID_CHARS_MAX = 128
"""Longest request id; a UUID takes 36."""
REPEATED_CALLS_MAX = 4
"""Calls at a time with one request id: the first, and those of a caller that waits half a minute and asks again."""
_RANKS = (("transformer_rank", ROLE_TRANSFORMER), ("decoder_rank", ROLE_DECODER))


class Admission:
    """Accepts jobs into the ledger. Returns a job that is on disk, and whether it was there before."""

    def __init__(self, core: Core, media: MediaChecks) -> None:
        self._config = core.config
        self._ledger = core.ledger
        self._fleet = core.fleet
        self._served = core.model
        self._media = media
        self._uploads = core.uploads
        self._url_media = core.url_media
        self._under_way: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """By client and request id: calls with the same wait for the first one's end, and find its job."""
        self._calls: Counter[tuple[str, str]] = Counter()
        self._accepting: Counter[str] = Counter()
        """Jobs that are being checked or written, by client: they count before the ledger has them."""
        self._bytes: Counter[str] = Counter()
        """The size of their requests."""

    async def accept(self, request_id: str, request: GenerationRequest, client: Identity) -> tuple[JournalEntry, bool]:
        """Accept a client's request. Its `request_id` names one job among its own.

        The cheapest checks come first and files last: a request that is refused for anything else costs no decoding,
        and no client has more files decoded at a time than it may have jobs. Raises InvalidRequest, AlreadyExists,
        BacklogFull, QuotaFull, ChecksFull, JournalFull, Unavailable, and as `Uploads.find_media`. URLs are
        fetched after all that can be checked without them.
        """
        if len(request_id) > REQUEST_ID_CHARS_MAX:
            raise errors.InvalidRequest("request_id", request_id, f"up to {REQUEST_ID_CHARS_MAX} characters")
        async with self._alone(client.name, request_id):
            entry = await self._ledger.journal.find(client.name, request_id) if request_id else None
            was_there = entry is not None  # a retry: whatever has changed since, the job is accepted
            if entry is None:
                found = await self._uploads.find_media(client.name, request)
                message_bytes = rpc.message_bytes() or request.ByteSize()  # to count takes as long as to copy
                size_bytes = whole_bytes(request, message_bytes, found)
                with self._place(client.name, client.jobs_max, size_bytes):
                    await self._uploads.fill(client.name, request, found)
                    entry, was_there = await self._accept_new(request_id, request, client.name, size_bytes)
        if was_there:
            await asyncio.to_thread(_check_same, entry, request)  # its digest takes time where it is large
        return entry, was_there

    async def _accept_new(
        self, request_id: str, request: GenerationRequest, client: str, size_bytes: int
    ) -> tuple[JournalEntry, bool]:
        """Check a request that has a place, and write it down; see `_add`."""
        model = self._served.described()
        inputs = self._resolve(request, model)
        self._check_ranks(request)
        fetched_bytes = await self._url_media.fill(client, request, size_bytes)
        with self._room(client, fetched_bytes):
            if fetched_bytes:
                inputs = self._resolve(request, model)
            await self._media.check(inputs.files, client)
            return await self._write(request_id, request, client, model, inputs)

    async def _write(
        self, request_id: str, request: GenerationRequest, client: str, model: ModelDescription, inputs: Inputs
    ) -> tuple[JournalEntry, bool]:
        """Write a checked request down, after another look at what may have changed since it was checked."""
        if (present := self._served.described()) is not model:
            inputs = self._resolve(request, present)
            model = present
        self._check_ranks(request)
        stored = GenerationRequest()
        stored.CopyFrom(request)
        if not request.HasField("seed") and not request.seeds:
            stored.seed = secrets.randbelow(limits.SEED_LIMIT)
        adapters.pin(stored, model)
        job = Job(client=client, request_id=request_id, model=model.model, model_digest=model.config_digest)
        return await self._add(job, stored, costs.pixels_of(inputs.work))

    def _resolve(self, request: GenerationRequest, model: ModelDescription) -> Inputs:
        inputs = resolve(request, model)
        check_deadline(request, time.time())
        costs.check_work(inputs.work, self._config.work_max)
        costs.check_result(inputs.work, self._config.result_bytes_max)
        return inputs

    def _check_ranks(self, request: GenerationRequest) -> None:
        for name, role in _RANKS:
            rank = getattr(request, name)
            alive = [member.rank for member in self._fleet.alive(role)]
            if rank and rank not in alive:
                raise errors.InvalidRequest(name, rank, f"0 for anyone, or a rank that is alive: {alive}")

    @contextlib.asynccontextmanager
    async def _alone(self, client: str, request_id: str) -> AsyncIterator[None]:
        """Have one call at a time of a client with a request id: a repeated one joins the one that is under way."""
        if not request_id:
            yield
            return
        key = (client, request_id)
        if self._calls[key] >= REPEATED_CALLS_MAX:
            raise errors.ChecksFull(f"{REPEATED_CALLS_MAX} calls with this request_id are under way; try again later")
        with counted(self._calls, key):
            async with self._under_way.setdefault(key, asyncio.Lock()):
                yield

    async def retry(self, dead: JournalEntry, client: Identity) -> tuple[JournalEntry, bool]:
        """Accept a dead letter's request again; one job each time. Raises WrongState for others, and as `accept`."""
        job = dead.job
        if not job.dead_letter:
            raise errors.WrongState(
                f"job {job.job_id} is no dead letter: only jobs that FAILED after too many attempts are"
            )
        if (existing := await self._ledger.journal.retry_of(job.job_id)) is not None:
            return existing, True
        request = await self._ledger.journal.get_request(job.job_id)
        if request is None:
            raise errors.NotFound(f"the request of job {job.job_id!r} can't be read any more")
        self._drop_past(request)
        if not self._served.is_foreign(job):  # else it waits for its model, which it was checked against
            self._resolve(request, self._served.described())
        jobs_max = client.jobs_max if job.client == client.name else 0
        # It is tried on the model that it was accepted for.
        again = Job(client=job.client, retry_of=job.job_id, model=job.model, model_digest=job.model_digest)
        with self._place(job.client, jobs_max, dead.request_size_bytes):
            return await self._add(again, request, dead.pixels)

    def _drop_past(self, request: GenerationRequest) -> None:
        """Drop a deadline that has passed and ranks that are gone."""
        if is_past_deadline(request):
            request.ClearField("deadline_time")
        for name, role in _RANKS:
            if getattr(request, name) not in [member.rank for member in self._fleet.alive(role)]:
                request.ClearField(name)  # type: ignore[arg-type]

    async def _add(self, job: Job, request: GenerationRequest, pixels: float) -> tuple[JournalEntry, bool]:
        """Write a job down, in a place that the caller keeps. Returns it and False, or the one before it and True."""
        job.job_id = ids.new_job_id()
        job.state = JOB_STATE_QUEUED
        job.seed = request.seeds[0] if request.seeds else request.seed
        job.seeds.extend(request.seeds)
        job.request_id = job.request_id or job.job_id
        job.priority = request.priority or PRIORITY_NORMAL
        job.trace_id = telemetry.trace_id()
        job.create_time.GetCurrentTime()
        job.update_time.CopyFrom(job.create_time)
        if request.HasField("deadline_time"):
            job.deadline_time.CopyFrom(request.deadline_time)
        entry = JournalEntry(
            job=job,
            traceparent=telemetry.inject(),
            ready_time=job.create_time,
            transformer_rank=request.transformer_rank,
            decoder_rank=request.decoder_rank,
            pixels=pixels,
        )
        if (existing := await self._ledger.journal.add(entry, request)) is not None:
            return existing, True
        self._ledger.add(entry)
        telemetry.annotate({"gen_ai.request.model": job.model}, job_id=job.job_id)
        log.info("accepted", extra={"job_id": job.job_id})
        return entry, False

    @contextlib.contextmanager
    def _place(self, client: str, jobs_max: int, size_bytes: int) -> Iterator[None]:
        """Keep a place for a job while it is checked and written, so that calls at the same time don't share one."""
        unfinished = len(self._ledger.active) + self._accepting.total()
        if unfinished >= self._config.backlog_jobs_max:
            foreign = sum(one.job_count for one in self._served.waiting())
            of_them = f", {foreign} of which wait for another model" if foreign else ""
            raise errors.BacklogFull(f"{unfinished} unfinished jobs{of_them}, the most that are kept; try again later")
        own = self._ledger.job_counts[client] + self._accepting[client]
        if jobs_max and own >= jobs_max:
            raise errors.QuotaFull(
                f"client {client!r} has {own} unfinished jobs, the most that it may have; try again later"
            )
        with counted(self._accepting, client), self._room(client, size_bytes):
            yield

    @contextlib.contextmanager
    def _room(self, client: str, size_bytes: int) -> Iterator[None]:
        """Count bytes of a client's request, which is being accepted. Raises QuotaFull."""
        taken_bytes = self._ledger.request_bytes[client] + self._bytes[client]
        bytes_max = self._config.client_bytes_max
        if size_bytes and bytes_max and taken_bytes + size_bytes > bytes_max:
            raise errors.QuotaFull(
                f"the unfinished requests of client {client!r} take {taken_bytes} bytes, this one {size_bytes}, and "
                f"client_bytes_max is {bytes_max}; try again later"
            )
        with counted(self._bytes, client, size_bytes):
            yield


def _check_same(existing: JournalEntry, request: GenerationRequest) -> None:
    """Raise AlreadyExists unless the job was made for this request, by its digest: the request goes with its job."""
    is_same_seed = not request.HasField("seed") or request.seed == existing.job.seed
    if not is_same_seed or digest_of(request) != existing.request_sha256:
        raise errors.AlreadyExists(f"request_id {existing.job.request_id!r} was used for another request")
