"""The controller: what happens to jobs when clients ask, workers report and time passes.

It joins three parts that know nothing of each other: the `Ledger` (jobs, durable), the `Fleet` (workers, in
memory) and the rings. It never touches a tensor. All of it runs on one event loop; whatever must hold across
an `await` is checked inside `Ledger.apply`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from services.controller import completion, jobs, repeats
from services.controller.admission import Admission
from services.controller.background import Background
from services.controller.dispatcher import Dispatcher
from services.controller.fleet import Fleet
from services.controller.ledger import Ledger, Progress, is_past
from services.controller.media_checks import MediaChecks
from services.controller.models import Models
from services.controller.quarantine import Quarantine
from services.controller.routing import elsewhere
from triptych import telemetry
from triptych.config import ControllerConfig
from triptych.errors import FAILURE_CHARS_MAX, Fenced, InvalidRequest, LeaseLost, NotFound, RingFull
from triptych.identity import Identity
from triptych.rings.memory import MemoryRing
from triptych.roles import NEXT, role_name
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch, Ring, Role
from triptych.v1.fleet_service_pb2 import (
    FAILURE_REASON_INVALID_REQUEST,
    FAILURE_REASON_OUT_OF_MEMORY,
    FAILURE_REASON_SOURCE_CORRUPT,
    FAILURE_REASON_SOURCE_GONE,
    FAILURE_REASON_STAGE_ERROR,
    FAILURE_REASON_STOPPED,
    FAILURE_REASON_WORKER_BROKEN,
    CompletePhaseRequest,
    FailPhaseRequest,
    FailureReason,
    HeartbeatRequest,
    StartPhaseRequest,
)
from triptych.v1.job_pb2 import (
    ATTEMPT_KIND_GIVEN_UP,
    ATTEMPT_KIND_OUT_OF_MEMORY,
    ATTEMPT_KIND_ROOM_LOST,
    ATTEMPT_KIND_STAGE_ERROR,
    ATTEMPT_KIND_UNSPECIFIED,
    ATTEMPT_KIND_WORKER_SICK,
    JOB_STATE_CANCELLED,
    JOB_STATE_EXPIRED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    Attempt,
    AttemptKind,
    GenerationRequest,
    Job,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.ring_service_pb2 import Lease

log = logging.getLogger(__name__)

KIND_OF: Mapping[FailureReason.ValueType, AttemptKind.ValueType] = {
    FAILURE_REASON_STAGE_ERROR: ATTEMPT_KIND_STAGE_ERROR,
    FAILURE_REASON_OUT_OF_MEMORY: ATTEMPT_KIND_OUT_OF_MEMORY,
    FAILURE_REASON_WORKER_BROKEN: ATTEMPT_KIND_WORKER_SICK,
    FAILURE_REASON_SOURCE_GONE: ATTEMPT_KIND_ROOM_LOST,
    FAILURE_REASON_SOURCE_CORRUPT: ATTEMPT_KIND_ROOM_LOST,
    FAILURE_REASON_STOPPED: ATTEMPT_KIND_GIVEN_UP,
}
"""What a worker's report makes of the attempt; INVALID_REQUEST ends the job instead."""


EXPIRED_AT_ONCE = 256
"""Jobs whose ends share the journal's commits; others' calls come between."""


def attempt_of(role: Role.ValueType, rank: int, reason: str, kind: AttemptKind.ValueType) -> Attempt:
    """An attempt that ends now."""
    attempt = Attempt(role=role, rank=rank, reason=reason, kind=kind)
    attempt.end_time.GetCurrentTime()
    return attempt


class Controller:
    """The truth about jobs."""

    def __init__(
        self,
        config: ControllerConfig,
        ledger: Ledger,
        rings: Mapping[Ring.ValueType, MemoryRing],
        model: ModelDescription | None,
        metrics: telemetry.Metrics,
        on_over: Callable[[JournalEntry], None] = lambda _entry: None,
    ) -> None:
        """`on_over` is told of each job that ends."""
        self.config = config
        self.ledger = ledger
        self.fleet = Fleet()
        self.rings = rings
        self.metrics, self._on_over = metrics, on_over
        self.background = Background(metrics)
        self.quarantine = Quarantine(ledger)
        self.dispatcher = Dispatcher(rings, ledger, self.fleet, lambda: self.models.digest)
        self.models = Models(ledger, self.fleet, rings, model, self.dispatcher.enqueue_all)
        self.media = MediaChecks()
        """Close it when the controller ends."""
        self.admission = Admission(config, ledger, self.fleet, self.models, self.media)

    @property
    def model(self) -> ModelDescription | None:
        """What jobs are accepted for; None before a worker came."""
        return self.models.present

    # -- clients ----------------------------------------------------------------------------------------------

    async def create(self, request_id: str, request: GenerationRequest, client: Identity) -> Job:
        """Accept a job: when this returns it is on disk. A client's `request_id` gives the same job each time.

        Raises as `Admission.accept`.
        """
        return self._queue(*await self.admission.accept(request_id, request, client))

    async def retry(self, job_id: str, client: Identity) -> Job:
        """Accept the request of a dead letter as a new job. Raises NotFound, WrongState, and as `create`."""
        dead = await self.ledger.journal.get(job_id)
        if dead is None:
            raise NotFound(f"there is no job {job_id!r}")
        return self._queue(*await self.admission.retry(dead, client))

    def _queue(self, entry: JournalEntry, was_there: bool) -> Job:
        if not was_there:
            self.dispatcher.enqueue(entry)
        return self.ledger.describe(entry)

    async def cancel(self, job_id: str) -> Job:
        """Stop a job, within a step where it runs. Raises NotFound. A job that is over stays as it is."""
        await self.give_up(job_id, JOB_STATE_CANCELLED, "")
        return await self.ledger.get(job_id)

    async def give_up(self, job_id: str, state: JobState.ValueType, error: str, *, dead_letter: bool = False) -> None:
        """End a job without a result, unless it is over."""
        try:
            await self._apply(job_id, lambda entry: jobs.give_up(entry, state, error, dead_letter=dead_letter))
        except LeaseLost:
            return  # it is over already, or the caller's `get` says that it never was

    # -- workers ----------------------------------------------------------------------------------------------

    async def start_phase(self, request: StartPhaseRequest) -> GenerationRequest:
        """A worker begins a dispatch that it has claimed. Raises LeaseLost when it must drop it."""
        self.fleet.check(request.lease.rank, request.role)

        def change(entry: JournalEntry) -> JournalEntry:
            self.models.check_own(entry)
            return jobs.start(entry, request.role, request.generation, request.lease)

        entry = await self._apply(request.job_id, change)
        previous = self.ledger.progress.get(request.job_id, Progress())
        progress = Progress(preview_number=previous.preview_number, seen_s=asyncio.get_running_loop().time())
        self.ledger.set_progress(request.job_id, progress)
        stored = await self.ledger.journal.get_request(request.job_id)
        if stored is None:  # damaged; or it is over by now, and this changes nothing
            await self.give_up(request.job_id, JOB_STATE_FAILED, "its request can't be read from the journal any more")
            raise NotFound(f"there is no request of job {request.job_id!r}")
        self.dispatcher.work.set()
        return self._share(entry, request.role, stored)

    def _share(self, entry: JournalEntry, role: Role.ValueType, request: GenerationRequest) -> GenerationRequest:
        """What a role needs of a request: encoders what the pipeline takes, decoders how to deliver, others nothing."""
        if role == ROLE_ENCODER:
            request.ClearField("deadline_time")  # the dispatch has it; a request is refused for one that has passed
            request.transformer_rank = request.transformer_rank or elsewhere(entry, ROLE_TRANSFORMER, self.fleet)
            request.decoder_rank = request.decoder_rank or elsewhere(entry, ROLE_DECODER, self.fleet)
            return request
        if role == ROLE_DECODER:
            return GenerationRequest(output_format=request.output_format, frames_per_second=request.frames_per_second)
        return GenerationRequest()

    async def complete_phase(self, request: CompletePhaseRequest, result_url: str) -> None:
        """A stage is done, its files below `result_url`. The first completion is taken; LeaseLost refuses others."""
        member = self.fleet.check(request.lease.rank, request.role)
        role = request.role
        if role in NEXT:
            request.next.model_digest = self.models.digest  # of a job that runs here: before its length is checked
        completion.check(request, result_url, member.address)

        def change(entry: JournalEntry) -> JournalEntry:
            if entry.job.generation == request.generation and request.next.room.room_id in jobs.rooms(entry):
                return entry  # this very completion was taken before, and only its answer was lost
            after = jobs.complete(entry, role, request.generation, request.lease)
            if role == ROLE_ENCODER:
                after.phase1.CopyFrom(request.next)
            elif role == ROLE_TRANSFORMER:
                after.phase2.CopyFrom(request.next)
                after.job.step = after.job.step_count = request.step_count
            else:
                after.job.artifacts.extend(request.artifacts)
            return after

        try:
            await self._apply(request.job_id, change)
        except LeaseLost:
            if not await self._was_taken(request):
                raise
        self.quarantine.succeeded(request.lease.rank)

    async def _was_taken(self, request: CompletePhaseRequest) -> bool:
        """Whether a decoder's completion is the one that was accepted, and only its answer was lost."""
        entry = await self.ledger.journal.get(request.job_id)
        return bool(request.artifacts) and entry is not None and list(entry.job.artifacts) == list(request.artifacts)

    async def fail_phase(self, request: FailPhaseRequest) -> None:
        """A stage failed: end the job, or publish it again where that may help. Raises LeaseLost when superseded."""
        self.fleet.check(request.lease.rank, request.role)
        reason, cap = request.reason, self.config.attempts_max
        if reason not in FailureReason.values():
            raise InvalidRequest("reason", reason, ", ".join(FailureReason.keys()))
        message = request.message[:FAILURE_CHARS_MAX]
        kind = KIND_OF.get(reason, ATTEMPT_KIND_UNSPECIFIED)
        attempt = attempt_of(request.role, request.lease.rank, message or FailureReason.Name(reason), kind)
        attempt.place = repeats.accepted_place(request.place)
        fields = await repeats.fields(self.ledger.journal, request.job_id, attempt)
        now = Timestamp()
        now.GetCurrentTime()

        def change(entry: JournalEntry) -> JournalEntry:
            jobs.check_lease(entry, request.role, request.generation, request.lease)
            if reason == FAILURE_REASON_INVALID_REQUEST:
                return jobs.give_up(entry, JOB_STATE_FAILED, message)
            if reason == FAILURE_REASON_STOPPED and _is_past_deadline(entry.job, now):
                return jobs.give_up(entry, JOB_STATE_EXPIRED, "the deadline passed")
            if reason in (FAILURE_REASON_SOURCE_GONE, FAILURE_REASON_SOURCE_CORRUPT):
                bad = entry.phase2 if request.role == ROLE_DECODER else entry.phase1
                return jobs.go_back(
                    entry, attempt, cap, lambda d: d.room.room_id != bad.room.room_id and self._is_readable(d)
                )
            return jobs.retry(entry, attempt, cap, repeats.verdict(entry.job, attempt, fields))

        log.warning("stage failed: %s", message, extra={"job_id": request.job_id, "rank": request.lease.rank})
        await self._apply(request.job_id, change)
        self.quarantine.failed(request.lease.rank, request.job_id)

    async def unlease(self, entry: JournalEntry) -> None:
        """The worker of a running job has handed it back: it waits, and its entry in the ring is as good as before."""
        await self._apply_if_same(entry, jobs.unlease)

    async def lease_lost(self, entry: JournalEntry, attempt: Attempt, *, redelivered: bool) -> None:
        """The worker of a running job is gone. `redelivered`: the ring has put its dispatch up again."""
        change, cap = jobs.lose_lease if redelivered else jobs.retry, self.config.attempts_max
        await self._apply_if_same(entry, lambda e: change(e, attempt, cap))

    async def source_lost(self, entry: JournalEntry, attempt: Attempt) -> None:
        """The room that a job reads next is gone: back to the last stage whose own room is still there."""
        cap = self.config.attempts_max
        lost = jobs.dispatch_of(entry).room.room_id
        await self._apply_if_same(
            entry,
            lambda e: jobs.go_back(e, attempt, cap, lambda d: d.room.room_id != lost and self._is_readable(d)),
        )

    async def relet(self, job_id: str, old: Lease, new: Lease) -> None:
        """A running job goes on under another lease, after a restart. Raises LeaseLost when it no longer runs."""

        def change(entry: JournalEntry) -> JournalEntry:
            jobs.check_lease(entry, jobs.role_of(entry), entry.job.generation, old)
            return jobs.start(jobs.unlease(entry), jobs.role_of(entry), entry.job.generation, new)

        await self._apply(job_id, change)
        now_s = asyncio.get_running_loop().time()
        self.ledger.set_progress(job_id, replace(self.ledger.progress.get(job_id, Progress()), seen_s=now_s))

    async def _apply_if_same(self, seen: JournalEntry, change: jobs.Change) -> None:
        """Apply, unless the job has moved on since it was seen."""
        try:
            await self._apply(seen.job.job_id, lambda entry: change(entry) if entry == seen else entry)
        except LeaseLost:
            return  # over in the meantime

    async def start_direct(
        self, rank: int, request_id: str, request: GenerationRequest, client: Identity
    ) -> tuple[Job, Lease | None, Dispatch | None]:
        """Accept a job and lease it to the calling encoder at once. Raises as `create`, and RingFull."""
        self.fleet.check(rank, ROLE_ENCODER)
        if self.rings[RING_REQUEST].stats().free_count == 0:
            raise RingFull("the request ring is full; send the job to the controller instead")
        entry, _was_there = await self.admission.accept(request_id, request, client)
        if entry.job.state != JOB_STATE_QUEUED or entry.job.generation or self.models.is_foreign(entry.job):
            return self.ledger.describe(entry), None, None
        lease = self.dispatcher.lease_to(rank, entry)
        return self.ledger.describe(entry), lease, jobs.dispatch_of(entry)

    def report(self, report: HeartbeatRequest) -> None:
        """A heartbeat. Raises Fenced when the rank isn't (or is no longer) a member, NotAllowed as `Fleet.check`."""
        member = self.fleet.check(report.rank)
        if not member.registrations.is_last(report.registration_number):
            raise Fenced(f"rank {report.rank} has registered anew since registration {report.registration_number}")
        now_s, took_work = asyncio.get_running_loop().time(), member.takes_work
        member.saw(report, now_s)
        self.quarantine.saw(report.rank, report.state, report.waiting_for)
        if took_work and not member.takes_work:
            self.dispatcher.withdraw(report.rank)
        for ring in report.changed_rings:
            if ring in self.rings:
                self.rings[ring].hint()
        p = report.progress
        entry = self.ledger.active.get(p.job_id)
        if entry is None or entry.job.generation != p.generation or entry.lease.rank != report.rank:
            return
        before = self.ledger.progress.get(p.job_id, Progress())
        if (p.step, p.step_count) == (before.step, before.step_count) and not p.preview_png:
            return
        self.ledger.set_progress(
            p.job_id,
            Progress(
                step=p.step,
                step_count=p.step_count,
                preview_png=p.preview_png or before.preview_png,
                preview_number=before.preview_number + bool(p.preview_png),
                seen_s=now_s,
            ),
        )

    # -- what follows from a change ---------------------------------------------------------------------------

    async def _apply(self, job_id: str, change: jobs.Change) -> JournalEntry:
        """Change a job and do what follows from it: publish, stop the worker, release the rooms."""
        before, after = await self.ledger.apply(job_id, change)
        if after is before:
            return after
        if after.job.generation != before.job.generation:
            self.ledger.progress.pop(job_id, None)
            if not jobs.is_over(after):
                self.dispatcher.enqueue(after)
        if jobs.is_over(after) and jobs.is_running(before):
            self.fleet.cancel(before.lease.rank, job_id)
        if jobs.is_over(after):
            self.dispatcher.discard(job_id)
            self._on_over(after)
        if after.job.dead_letter:
            self.metrics.dead_lettered(role_name(jobs.role_of(before)))
        self._release_dropped(before, after)
        if after.job.state != before.job.state:
            log.info("job is %s", jobs.name(after.job.state), extra={"job_id": job_id})
        return after

    def _release_dropped(self, before: JournalEntry, after: JournalEntry) -> None:
        kept = set() if jobs.is_over(after) else jobs.rooms(after).keys()
        for room_id, rank in (jobs.rooms(before) | jobs.rooms(after)).items():
            if room_id not in kept:
                self.fleet.release(rank, room_id)

    def _is_readable(self, dispatch: Dispatch) -> bool:
        return dispatch.HasField("room") and dispatch.room.owner_rank in self.fleet.members

    async def expire(self) -> None:
        """End the jobs whose deadline has passed, by the controller's clock, which alone decides it."""
        now = Timestamp()
        now.GetCurrentTime()
        late = [entry.job.job_id for entry in self.ledger.active.values() if _is_past_deadline(entry.job, now)]
        for start in range(0, len(late), EXPIRED_AT_ONCE):
            batch = late[start : start + EXPIRED_AT_ONCE]
            await asyncio.gather(*(self.give_up(one, JOB_STATE_EXPIRED, "the deadline passed") for one in batch))


def _is_past_deadline(job: Job, now: Timestamp) -> bool:
    return job.HasField("deadline_time") and is_past(job.deadline_time, now)
