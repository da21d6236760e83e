"""The live jobs: the journal's entries in memory, for the event loop only. A change is on disk before it is seen."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from triptych.errors import LeaseLost, NotFound
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.generation_service_pb2 import WatchJobResponse
from triptych.v1.job_pb2 import GenerationRequest, Job, JobState
from triptych.v1.journal_pb2 import JournalEntry

from . import jobs
from .journal import Journal
from .shares import add_to

TURN_JOBS = 256
"""Jobs taken up between two turns of other tasks: some milliseconds."""


@dataclass(frozen=True)
class Progress:
    """How far a running job is; not worth a disk write."""

    step: int = 0
    step_count: int = 0
    preview_png: bytes = b""
    preview_number: int = 0
    start_s: float = 0.0
    """When its present stage began, by the loop's clock; 0 where this controller didn't see that."""
    seen_s: float = 0.0


class Ledger:
    """The jobs that aren't over, by id. Those that are over are in the journal only."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.active: dict[str, JournalEntry] = {}
        self.progress: dict[str, Progress] = {}
        self.job_counts: Counter[str] = Counter()
        """By client."""
        self.state_counts: Counter[JobState.ValueType] = Counter()
        """By state; metrics read it from another thread."""
        self.request_bytes: Counter[str] = Counter()
        """The size of the jobs' requests, by client."""
        self._counts_by_model: Counter[tuple[str, str, str]] = Counter()
        """By client, digest and name of the model."""
        self.model_state_counts: Counter[tuple[str, JobState.ValueType]] = Counter()
        """By digest of the model and state."""
        self._by_rank: dict[int, set[str]] = defaultdict(set)
        """Ids of the jobs that a worker runs, or whose rooms it holds."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of the jobs that are being changed. Weak: callers may make ids up, and must not fill the memory."""
        self._changed: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        """Of the jobs that are watched: set at the next change."""

    async def load(self) -> AsyncIterator[JournalEntry]:
        """Take up and yield every job that isn't over; called once, at start. Other tasks have their turns between."""
        for number, entry in enumerate(await self.journal.unfinished(sorted(jobs.OVER)), 1):
            self.add(entry)
            yield entry
            if number % TURN_JOBS == 0:
                await asyncio.sleep(0)

    def concerning(self, rank: int) -> list[str]:
        """Ids of the jobs that a worker runs or whose rooms it holds, and of all that are just being changed: they may
        come to be such. In the order in which they were accepted."""
        changing = {job_id for job_id, lock in self._locks.items() if lock.locked()}
        found = [self.active[one] for one in changing.union(self._by_rank.get(rank, ())) if one in self.active]
        return [entry.job.job_id for entry in sorted(found, key=lambda entry: entry.job.create_time.ToNanoseconds())]

    def ranks(self) -> set[int]:
        """Workers that run a job or hold a room of one."""
        return set(self._by_rank)

    def counts_by_model(self, client: str | None = None) -> dict[tuple[str, str], int]:
        """How many jobs aren't over by digest and name of their model; of a client, or of all."""
        found: Counter[tuple[str, str]] = Counter()
        for (owner, digest, model), count in self._counts_by_model.items():
            if client is None or owner == client:
                found[digest, model] += count
        return dict(found)

    def _count(self, entry: JournalEntry, change: int) -> None:
        job = entry.job
        add_to(self.model_state_counts, (job.model_digest, job.state), change)
        add_to(self.request_bytes, job.client, change * entry.request_size_bytes)
        add_to(self.job_counts, job.client, change)
        self.state_counts[job.state] += change
        add_to(self._counts_by_model, (job.client, job.model_digest, job.model), change)

    def _index(self, job_id: str, before: set[int], after: set[int]) -> None:
        for rank in before - after:
            self._by_rank[rank].discard(job_id)
            if not self._by_rank[rank]:
                del self._by_rank[rank]
        for rank in after - before:
            self._by_rank[rank].add(job_id)

    async def apply(self, job_id: str, change: jobs.Change) -> tuple[JournalEntry, JournalEntry]:
        """Change a job durably. Returns the entry before and after.

        Raises LeaseLost when the job is over or unknown, and what `change` raises; then nothing changed.
        """
        async with self._locks.setdefault(job_id, asyncio.Lock()):
            before = self.active.get(job_id)
            if before is None:
                raise LeaseLost(f"job {job_id} is over or unknown")
            after = change(before)
            if after is before:
                return before, before
            after.job.update_time.GetCurrentTime()
            if _begins_to_wait(before, after):
                after.ready_time.CopyFrom(after.job.update_time)
            if jobs.is_over(after):
                after.job.end_time.CopyFrom(after.job.update_time)
                _show(self._progress_of(job_id), after.job)
            await self.journal.save(after)
            if jobs.is_over(after):
                self.progress.pop(job_id, None)
                del self.active[job_id]
                self._count(before, -1)
                self._index(job_id, jobs.ranks(before), set())
            else:
                self.active[job_id] = after
                self.state_counts[before.job.state] -= 1
                self.state_counts[after.job.state] += 1
                add_to(self.model_state_counts, (before.job.model_digest, before.job.state), -1)
                add_to(self.model_state_counts, (after.job.model_digest, after.job.state), 1)
                self._index(job_id, jobs.ranks(before), jobs.ranks(after))
                if jobs.is_running(before) and not jobs.is_running(after) and job_id in self.progress:
                    # The stage's last report is older than what the entry says now, be it all steps or none.
                    self.progress[job_id] = replace(self.progress[job_id], step=0, step_count=0)
        self._wake(job_id)
        return before, after

    async def settled(self, job_id: str) -> JournalEntry | None:
        """An active job when all changes of it that are under way by now are done; None when it is over or unknown."""
        if job_id not in self.active:
            return None
        async with self._locks.setdefault(job_id, asyncio.Lock()):
            return self.active.get(job_id)

    def add(self, entry: JournalEntry) -> None:
        """Take up an entry that the journal has."""
        self.active[entry.job.job_id] = entry
        self._count(entry, 1)
        self._index(entry.job.job_id, set(), jobs.ranks(entry))

    async def get(self, job_id: str) -> Job:
        """A job as it stands now, with its progress. Raises NotFound."""
        entry = self.active.get(job_id) or await self.journal.get(job_id)
        if entry is None:
            raise NotFound(f"there is no job {job_id!r}")
        return self.describe(entry)

    def describe(self, entry: JournalEntry) -> Job:
        """The job for clients: the entry's, with the progress of the running stage."""
        job = Job()
        job.CopyFrom(entry.job)
        _show(self._progress_of(job.job_id), job)
        return job

    def restart_progress(self, job_id: str) -> None:
        """A stage begins: no step is done yet."""
        number, now_s = self._progress_of(job_id).preview_number, asyncio.get_running_loop().time()
        self._set_progress(job_id, Progress(preview_number=number, start_s=now_s))

    def stage_s(self, job_id: str) -> float:
        """How long a job's present stage has run; 0 where this controller didn't see it begin."""
        start_s = self._progress_of(job_id).start_s
        return asyncio.get_running_loop().time() - start_s if start_s else 0.0

    def longest_stage_s(self, role: Role.ValueType) -> float:
        """How long the longest of a role's running stages has run; 0 where none does."""
        state = jobs.RUNNING[role]
        running = (one for one in self.progress if one in self.active and self.active[one].job.state == state)
        return max(map(self.stage_s, running), default=0.0)

    def touch_progress(self, job_id: str) -> None:
        """A stage goes on: its time without a step begins again."""
        self._set_progress(job_id, self._progress_of(job_id))

    def take_progress(self, job_id: str, step: int, step_count: int, preview_png: bytes) -> None:
        """A worker reports how far a stage is. Steps never go back."""
        before = self._progress_of(job_id)
        is_news = step >= before.step and (step, step_count) != (before.step, before.step_count)
        after = replace(before, step=step, step_count=step_count) if is_news else before
        if preview_png:
            after = replace(after, preview_png=preview_png, preview_number=before.preview_number + 1)
        if after is not before:
            self._set_progress(job_id, after)

    def _progress_of(self, job_id: str) -> Progress:
        return self.progress.get(job_id, Progress())

    def _set_progress(self, job_id: str, progress: Progress) -> None:
        """Record how far a job is now, and wake its watchers."""
        self.progress[job_id] = replace(progress, seen_s=asyncio.get_running_loop().time())
        self._wake(job_id)

    async def watch(self, job_id: str) -> AsyncIterator[WatchJobResponse]:
        """Yield the job now and after each change until it is over. Raises NotFound."""
        preview_number = 0
        while True:
            changed = self._changed.setdefault(job_id, asyncio.Event())
            response = WatchJobResponse(job=await self.get(job_id))
            progress = self._progress_of(job_id)
            if progress.preview_number > preview_number:
                preview_number = progress.preview_number
                response.preview_png = progress.preview_png
            yield response
            if response.job.state in jobs.OVER:
                return
            await changed.wait()

    def _wake(self, job_id: str) -> None:
        if event := self._changed.pop(job_id, None):
            event.set()


def _begins_to_wait(before: JournalEntry, after: JournalEntry) -> bool:
    if jobs.is_running(after) or jobs.is_over(after):
        return False
    return (before.job.state, before.job.generation) != (after.job.state, after.job.generation)


def _show(progress: Progress, job: Job) -> None:
    """Put a running stage's steps into the job. A stage without steps leaves those of the stage before."""
    if progress.step_count:
        job.step = progress.step
        job.step_count = progress.step_count


def is_past_deadline(message: Job | GenerationRequest) -> bool:
    """Whether a job or a request has a deadline that is over, by this machine's clock."""
    deadline = message.deadline_time
    return message.HasField("deadline_time") and (deadline.seconds, deadline.nanos) <= divmod(time.time_ns(), 10**9)
