"""The life of jobs: clients create, cancel and retry them, deadlines pass, workers lose them.

`Lifecycle.apply` is the one way to change a job, and does what follows from the change: queue the job again, stop its
worker, release its rooms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from triptych.errors import EncoderBusy, InvalidRequest, LeaseLost, NotFound, WrongState
from triptych.model.description import DIGEST_CHARS, named
from triptych.roles import role_name
from triptych.security.identity import Identity
from triptych.v1 import job_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Dispatch
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

from . import attempt_spans, jobs
from .admission import Admission
from .attempts import attempt_of
from .core import Core
from .ledger import is_past_deadline
from .media_checks import MediaChecks

log = logging.getLogger(__name__)

GIVE_UP_BATCH_JOBS = 256
"""Jobs ended at the same time: they share the journal's commits, and others' calls come between batches."""


class Lifecycle:
    """Creates, changes and ends jobs."""

    def __init__(self, core: Core, media: MediaChecks, on_over: Callable[[JournalEntry], None]) -> None:
        """`on_over` is told of each job that ends."""
        self._core = core
        self._on_over = on_over
        self._admission = Admission(core, media)

    async def create(self, request_id: str, request: pb.GenerationRequest, client: Identity) -> pb.Job:
        """Accept a job: when this returns it is on disk. Raises as `Admission.accept`."""
        return self._queue(*await self._admission.accept(request_id, request, client))

    async def retry(self, job_id: str, client: Identity) -> pb.Job:
        """Accept the request of a dead letter as a new job. Raises NotFound, WrongState, and as `create`."""
        dead = await self._core.ledger.journal.get(job_id)
        if dead is None:
            raise NotFound(f"there is no job {job_id!r}")
        return self._queue(*await self._admission.retry(dead, client))

    def _queue(self, entry: JournalEntry, was_there: bool) -> pb.Job:
        if not was_there:
            self._core.metrics.job_accepted()
            self._core.dispatcher.enqueue(entry)
        return self._core.ledger.describe(entry)

    async def start_direct(self, rank: int, request_id: str, request: pb.GenerationRequest, client: Identity) -> pb.Job:
        """Accept a job for the encoder that calls. Raises EncoderBusy where it has others, and as `create`."""
        core = self._core
        core.fleet.check(rank, ROLE_ENCODER)
        ahead = [core.ledger.active.get(job_id) for job_id in core.dispatcher.within_reach(rank)]
        if any(e is None or (e.job.client, e.job.request_id) != (client.name, request_id) for e in ahead):
            raise EncoderBusy
        entry, was_there = await self._admission.accept(request_id, request, client)
        if not was_there:
            core.metrics.job_accepted()
            await core.dispatcher.publish_to(rank, entry)
        return core.ledger.describe(entry)

    async def cancel(self, job_id: str) -> pb.Job:
        """Stop a job, within a step where it runs. Raises NotFound. A job that is over stays as it is."""
        await self.give_up(job_id, pb.JOB_STATE_CANCELLED, "")
        return await self._core.ledger.get(job_id)

    async def give_up(self, job_id: str, state: pb.JobState.ValueType, error: str) -> None:
        """End a job without a result, unless it is over."""
        with contextlib.suppress(LeaseLost):  # over already, or the caller's `get` says that it never was
            await self.apply(job_id, lambda entry: jobs.give_up(entry, state, error))

    async def give_up_all(self, job_ids: Sequence[str], state: pb.JobState.ValueType, error: str) -> None:
        """End jobs without a result, `GIVE_UP_BATCH_JOBS` at a time."""
        for start in range(0, len(job_ids), GIVE_UP_BATCH_JOBS):
            batch = job_ids[start : start + GIVE_UP_BATCH_JOBS]
            await asyncio.gather(*(self.give_up(job_id, state, error) for job_id in batch))

    async def discard(self, digest_prefix: str) -> int:
        """End the unfinished jobs of a model that the fleet doesn't serve. Returns how many, none a second time.

        Raises InvalidRequest for a prefix that is too short or of several models, WrongState for the model in service.
        """
        if len(digest_prefix) < DIGEST_CHARS:
            accepted = f"a model's digest, or its first {DIGEST_CHARS} digits or more"
            raise InvalidRequest("model_digest", digest_prefix, accepted)
        core = self._core
        found = [entry.job for entry in core.ledger.active.values() if entry.job.model_digest.startswith(digest_prefix)]
        digests = {job.model_digest for job in found}
        if len(digests) > 1:
            raise InvalidRequest("model_digest", digest_prefix, "more digits: several models begin so")
        if not found:
            return 0
        model = named(found[0].model, found[0].model_digest)
        if digests == {core.model.digest} and core.fleet.members:
            raise WrongState(f"the fleet serves {model}: cancel its jobs by their ids")
        error = f"discarded by the operator, with all of {model}"
        await self.give_up_all([job.job_id for job in found], pb.JOB_STATE_CANCELLED, error)
        log.warning("discarded %d jobs of %s", len(found), model)
        return len(found)

    async def expire(self) -> None:
        """End the jobs whose deadline has passed, by the controller's clock, which alone decides it."""
        late = [entry.job.job_id for entry in self._core.ledger.active.values() if is_past_deadline(entry.job)]
        await self.give_up_all(late, pb.JOB_STATE_EXPIRED, "the deadline passed")

    # -- what happens to jobs when workers do -----------------------------------------------------------------

    async def worker_lost(
        self, entry: JournalEntry, reason: str, kind: pb.AttemptKind.ValueType, *, redelivered: bool = False
    ) -> None:
        """A running job has no worker any more. `redelivered`: the ring has put its dispatch up again."""
        attempt = attempt_of(jobs.role_of(entry), entry.lease.rank, reason, kind)
        source = jobs.dispatch_of(entry)
        attempts_max = self._core.config.attempts_max

        def change(entry: JournalEntry) -> JournalEntry:
            if source.HasField("room") and source.room.owner_rank not in self._core.fleet.members:
                return self.go_back(entry, attempt)
            return (jobs.lose_lease if redelivered else jobs.retry)(entry, attempt, attempts_max)

        await self.apply_if_same(entry, change)

    async def room_lost(self, entry: JournalEntry, reason: str) -> None:
        """The room that a job reads next is gone: the job goes back to the last stage whose own input is there."""
        owner_rank = jobs.dispatch_of(entry).room.owner_rank
        attempt = attempt_of(jobs.role_of(entry), owner_rank, reason, pb.ATTEMPT_KIND_ROOM_LOST)
        await self.apply_if_same(entry, lambda entry: self.go_back(entry, attempt))

    def go_back(self, entry: JournalEntry, attempt: pb.Attempt) -> JournalEntry:
        """The job without the room that it reads now: see `jobs.go_back`."""
        lost = jobs.dispatch_of(entry).room.room_id

        def is_readable(dispatch: Dispatch) -> bool:
            room = dispatch.room
            return room.room_id != lost and dispatch.HasField("room") and room.owner_rank in self._core.fleet.members

        return jobs.go_back(entry, attempt, self._core.config.attempts_max, is_readable)

    async def change_lease(self, job_id: str, old: Lease, new: Lease) -> None:
        """A running job goes on under another lease, after a restart. Raises LeaseLost when it no longer runs."""
        await self.apply(job_id, lambda entry: jobs.change_lease(entry, old, new))
        self._core.ledger.touch_progress(job_id)

    async def apply_if_same(self, seen: JournalEntry, change: jobs.Change) -> None:
        """Apply, unless the job has moved on since it was seen."""
        with contextlib.suppress(LeaseLost):  # over in the meantime
            await self.apply(seen.job.job_id, lambda entry: change(entry) if entry == seen else entry)

    # -- what follows from a change ---------------------------------------------------------------------------

    async def apply(self, job_id: str, change: jobs.Change) -> JournalEntry:
        """Change a job and do what follows from it. Raises as `Ledger.apply`."""
        core = self._core
        before, after = await core.ledger.apply(job_id, change)
        if after is before:
            return after
        attempt_spans.record(before, after)
        if after.job.generation != before.job.generation:
            core.ledger.progress.pop(job_id, None)
            if not jobs.is_over(after):
                core.dispatcher.enqueue(after)
        if jobs.is_running(before) and (jobs.is_over(after) or _is_superseded(before, after)):
            core.fleet.cancel(before.lease.rank, job_id)
        if jobs.is_over(after):
            core.dispatcher.discard(job_id)
            self._on_over(after)
        self._count(before, after)
        self._release_dropped(before, after)
        if after.job.state != before.job.state:
            log.info("job is %s", jobs.name(after.job.state), extra={"job_id": job_id})
        return after

    def _count(self, before: JournalEntry, after: JournalEntry) -> None:
        metrics = self._core.metrics
        for attempt in after.job.attempts[len(before.job.attempts) :]:
            metrics.attempt_failed(role_name(attempt.role), attempt.kind)
        if after.job.dead_letter:
            metrics.dead_lettered(role_name(jobs.role_of(before)))
        if jobs.is_over(after):
            job_s = (after.job.end_time.ToNanoseconds() - after.job.create_time.ToNanoseconds()) / 1e9
            metrics.job_ended(jobs.outcome(after), max(0.0, job_s), after.traceparent)

    def _release_dropped(self, before: JournalEntry, after: JournalEntry) -> None:
        kept = set() if jobs.is_over(after) else jobs.rooms(after).keys()
        for room_id, rank in (jobs.rooms(before) | jobs.rooms(after)).items():
            if room_id not in kept:
                self._core.fleet.release(rank, room_id)


def _is_superseded(before: JournalEntry, after: JournalEntry) -> bool:
    """Whether another worker has begun what one still runs: the ring took the first one's lease for lost."""
    return jobs.is_running(after) and after.lease.rank != before.lease.rank
