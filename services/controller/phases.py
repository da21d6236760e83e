"""The phases of jobs as workers report them: started, completed, failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from triptych.errors import FAILURE_CHARS_MAX, Fenced, InvalidRequest, LeaseLost, NotFound
from triptych.model import outputs, rates
from triptych.roles import NEXT
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import job_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.journal_pb2 import JournalEntry

from . import attempt_spans, attempts, completion, jobs
from .core import Core
from .ledger import is_past_deadline
from .lifecycle import Lifecycle

log = logging.getLogger(__name__)

KIND_OF: Mapping[pb.FailureReason.ValueType, job_pb2.AttemptKind.ValueType] = {
    pb.FAILURE_REASON_STAGE_ERROR: job_pb2.ATTEMPT_KIND_STAGE_ERROR,
    pb.FAILURE_REASON_OUT_OF_MEMORY: job_pb2.ATTEMPT_KIND_OUT_OF_MEMORY,
    pb.FAILURE_REASON_WORKER_BROKEN: job_pb2.ATTEMPT_KIND_WORKER_SICK,
    pb.FAILURE_REASON_SOURCE_GONE: job_pb2.ATTEMPT_KIND_ROOM_LOST,
    pb.FAILURE_REASON_SOURCE_CORRUPT: job_pb2.ATTEMPT_KIND_ROOM_LOST,
    pb.FAILURE_REASON_STOPPED: job_pb2.ATTEMPT_KIND_GIVEN_UP,
}
"""The kind of attempt that a worker's report makes; INVALID_REQUEST ends the job instead."""


class PhaseReports:
    """Takes the reports of workers."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._core = core
        self._lifecycle = lifecycle

    async def start(self, request: pb.StartPhaseRequest) -> pb.StartPhaseResponse:
        """A worker begins a dispatch that it has claimed. Raises LeaseLost when it must drop it."""
        core = self._core
        token = request.token
        core.fleet.check(token.lease.rank, token.role)
        response = pb.StartPhaseResponse()

        def change(entry: JournalEntry) -> JournalEntry:
            core.model.check_own(entry)
            after = jobs.start(entry, token.role, token.generation, token.lease)
            attempt_spans.begin(entry, after)
            attempt_spans.tell(entry, after, response)
            return after

        entry = await self._lifecycle.apply(token.job_id, change)
        core.ledger.restart_progress(token.job_id)
        stored = await core.ledger.journal.get_request(token.job_id)
        if stored is None:  # damaged; or it is over by now, and this changes nothing
            error = "its request can't be read from the journal any more"
            await self._lifecycle.give_up(token.job_id, job_pb2.JOB_STATE_FAILED, error)
            raise NotFound(f"there is no request of job {token.job_id!r}")
        core.dispatcher.work.set()
        if token.role == ROLE_DECODER and core.model.present is not None:
            response.metadata_json = outputs.metadata_json(stored, core.model.present)
        response.request.CopyFrom(self._share(entry, token.role, stored))
        response.pixels = entry.pixels
        return response

    def _share(
        self, entry: JournalEntry, role: Role.ValueType, request: job_pb2.GenerationRequest
    ) -> job_pb2.GenerationRequest:
        """The part of a request that a role needs: encoders all, decoders how to deliver, transformers nothing."""
        if role == ROLE_ENCODER:
            fleet = self._core.fleet
            request.transformer_rank = request.transformer_rank or fleet.elsewhere(entry, ROLE_TRANSFORMER)
            request.decoder_rank = request.decoder_rank or fleet.elsewhere(entry, ROLE_DECODER)
            return request
        if role == ROLE_DECODER:
            model = self._core.model.present
            fps = rates.frames_per_second(request, model) if model else request.frames_per_second
            output = request.output if request.HasField("output") else None
            return job_pb2.GenerationRequest(output_format=request.output_format, frames_per_second=fps, output=output)
        return job_pb2.GenerationRequest()

    async def complete(self, request: pb.CompletePhaseRequest) -> None:
        """A stage is done. The first completion of a phase is taken; LeaseLost refuses others."""
        try:
            await self._complete(request)
        except (LeaseLost, Fenced) as error:
            entry = await self._core.ledger.journal.get(request.token.job_id)
            if entry is not None and entry.lease != request.token.lease:  # else its worker registers, and asks again
                attempt_spans.refused(entry, request.token, str(error))
            raise

    async def _complete(self, request: pb.CompletePhaseRequest) -> None:
        core = self._core
        token = request.token
        role = token.role
        member = core.fleet.check(token.lease.rank, role)
        if role in NEXT:
            request.next.model_digest = core.model.digest  # of a job that runs here: before its length is checked
        completion.check(request, core.result_url, member.address)

        def change(entry: JournalEntry) -> JournalEntry:
            if entry.job.generation == token.generation and request.next.room.room_id in jobs.rooms(entry):
                return entry  # this very completion was taken before, and only its answer was lost
            after = jobs.complete(entry, role, token.generation, token.lease)
            completion.note_lossy(after.job, role, member.registration)
            if request.next.HasField("latent_shape"):
                after.job.latent_shape.CopyFrom(request.next.latent_shape)
            if role == ROLE_ENCODER:
                after.phase1.CopyFrom(request.next)
                after.job.ClearField("tokens_cut")  # of an earlier encoding
                after.job.tokens_cut.extend(request.tokens_cut)
            elif role == ROLE_TRANSFORMER:
                after.phase2.CopyFrom(request.next)
                after.job.step = after.job.step_count = request.step_count
            else:
                after.job.artifacts.extend(request.artifacts)
            return after

        stage_s = core.ledger.stage_s(token.job_id)
        try:
            await self._lifecycle.apply(token.job_id, change)
        except LeaseLost:
            if not await self._was_taken(request):
                raise
            stage_s = 0.0
        if stage_s:
            core.stage_times.completed(role, asyncio.get_running_loop().time(), stage_s)
        core.quarantine.succeeded(token.lease.rank)

    async def _was_taken(self, request: pb.CompletePhaseRequest) -> bool:
        """Whether a decoder's completion is the one that was accepted, and only its answer was lost."""
        if not request.artifacts:
            return False
        entry = await self._core.ledger.journal.get(request.token.job_id)
        return entry is not None and list(entry.job.artifacts) == list(request.artifacts)

    async def fail(self, request: pb.FailPhaseRequest) -> None:
        """A stage failed: end the job, or publish it again where that may help. Raises LeaseLost when superseded."""
        core = self._core
        token = request.token
        core.fleet.check(token.lease.rank, token.role)
        reason = request.reason
        if reason not in pb.FailureReason.values():
            raise InvalidRequest("reason", reason, ", ".join(pb.FailureReason.keys()))
        message = request.message[:FAILURE_CHARS_MAX]
        kind = KIND_OF.get(reason, job_pb2.ATTEMPT_KIND_UNSPECIFIED)
        attempt = attempts.attempt_of(token.role, token.lease.rank, message or pb.FailureReason.Name(reason), kind)
        attempt.place = attempts.accepted_place(request.place)
        if kind == job_pb2.ATTEMPT_KIND_OUT_OF_MEMORY:
            attempt.needed_bytes, attempt.available_bytes = request.needed_bytes, request.available_bytes
        fields = await self._fields(token.job_id, attempt)

        def change(entry: JournalEntry) -> JournalEntry:
            jobs.check_lease(entry, token.role, token.generation, token.lease)
            if reason == pb.FAILURE_REASON_INVALID_REQUEST:
                return jobs.give_up(entry, job_pb2.JOB_STATE_FAILED, message)
            if reason == pb.FAILURE_REASON_STOPPED and is_past_deadline(entry.job):
                return jobs.give_up(entry, job_pb2.JOB_STATE_EXPIRED, "the deadline passed")
            if kind == job_pb2.ATTEMPT_KIND_ROOM_LOST:
                return self._lifecycle.go_back(entry, attempt)
            verdict = attempts.verdict_on_repeat(entry.job, attempt, fields)
            return jobs.retry(entry, attempt, core.config.attempts_max, verdict)

        log.warning("stage failed: %s", message, extra={"job_id": token.job_id, "rank": token.lease.rank})
        await self._lifecycle.apply(token.job_id, change)
        core.quarantine.failed(token.lease.rank, token.job_id)

    async def _fields(self, job_id: str, attempt: job_pb2.Attempt) -> str:
        """The fields that the request sets, if this attempt repeats an earlier one: only then it is read."""
        entry = self._core.ledger.active.get(job_id)
        if entry is None or not attempts.is_repeated(entry.job, attempt):
            return ""
        request = await self._core.ledger.journal.get_request(job_id)
        return attempts.fields_of(request) if request is not None else ""
