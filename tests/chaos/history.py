"""What clients were told, and whether it can all be true: a check of a recorded history, in the way of linearizability.

Each answer is an `Event` with the moments of its call and of its answer; what it says was true at some moment between
the two. From that follow, whatever the schedule was, the rules below. Pure: no clock, no I/O.

    over            a job that an answer showed as over is shown in the same state by every later call
    generation      a job's generation is never lower in a later call than in an earlier answer
    stream          within one stream of WatchJob nothing follows the end, and no generation goes down
    one result      all answers and downloads of a job name the same bytes
    missing         a job that was acknowledged is found, and listed, by every later call
    cancelled       the answer of a cancel shows a job that is over
    request id      one request id, one job; one job, one request id

"Later" means: called after the earlier answer had arrived. Calls that overlap are in no order, so nothing is asked of
them but that two ends of a job are the same end. A call without an answer says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from triptych.v1.job_pb2 import Job, JobState
from triptych_client.job_states import TERMINAL_STATES, state_name


class Call(StrEnum):
    """Kinds of calls."""

    CREATE = "create"
    GET = "get"
    WATCH = "watch"
    LIST = "list"
    CANCEL = "cancel"
    DOWNLOAD = "download"


@dataclass(frozen=True)
class Seen:
    """One job, as an answer showed it. `digest` is the SHA-256 of its result, where it has one."""

    job_id: str
    request_id: str
    state: JobState.ValueType
    generation: int = 0
    digest: str = ""

    @classmethod
    def of(cls, job: Job) -> Seen:
        """From a message."""
        digest = "+".join(artifact.sha256.hex() for artifact in job.artifacts)
        return cls(job.job_id, job.request_id, job.state, job.generation, digest)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL_STATES


@dataclass(frozen=True)
class Event:
    """One call of one client, and its answer. Of a stream each message is an event, called when the stream was."""

    client: str
    call: Call
    called_s: float
    answered_s: float | None = None
    """None: no answer came, or an error that says nothing of the job."""
    asked: str = ""
    """The job that was asked for; of a create the request id; of a list nothing."""
    jobs: tuple[Seen, ...] = ()
    is_missing: bool = False
    """The answer was NOT_FOUND."""
    digest: str = ""
    """Of a download: the SHA-256 of what came."""
    stream: int = 0
    error: str = ""

    def __str__(self) -> str:
        answered = "no answer" if self.answered_s is None else f"{self.answered_s:.3f}"
        shown = ", ".join(f"{state_name(s.state)} generation {s.generation} {s.digest[:8]}".strip() for s in self.jobs)
        extra = " ".join(part for part in ("NOT_FOUND" if self.is_missing else "", self.digest[:8], self.error) if part)
        return f"{self.called_s:9.3f} … {answered:>9}  {self.client} {self.call} {self.asked}: {shown} {extra}".rstrip()


@dataclass(frozen=True)
class Violation:
    """A rule that the history breaks. `job_id` is empty where it is about no single job."""

    rule: str
    job_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(events: Sequence[Event]) -> list[Violation]:
    """Every violation that the events show."""
    answered = [event for event in events if event.answered_s is not None]
    return [
        *_check_order(answered),
        *_check_streams(answered),
        *_check_results(answered),
        *_check_missing(answered),
        *_check_cancels(answered),
        *_check_request_ids(answered),
    ]


def about(events: Iterable[Event], job_id: str) -> list[Event]:
    """The events that say something of a job, a list cut down to it."""
    found = []
    for event in events:
        shown = tuple(seen for seen in event.jobs if seen.job_id == job_id)
        if shown or event.asked == job_id:
            fields = {**vars(event), "jobs": shown}
            found.append(Event(**fields))
    return found


def _sightings(events: Iterable[Event]) -> dict[str, list[tuple[Event, Seen]]]:
    by_job: dict[str, list[tuple[Event, Seen]]] = defaultdict(list)
    for event in events:
        for seen in event.jobs:
            by_job[seen.job_id].append((event, seen))
    return by_job


def _check_order(events: Sequence[Event]) -> Iterator[Violation]:
    for job_id, sightings in _sightings(events).items():
        ends = {seen.state for _event, seen in sightings if seen.is_over}
        if len(ends) > 1:
            names = " and ".join(sorted(state_name(state) for state in ends))
            yield Violation("over", job_id, f"{job_id} was shown both {names}")
        by_answer = sorted(sightings, key=lambda sighting: sighting[0].answered_s or 0.0)
        position, end, generation = 0, None, 0
        for event, seen in sorted(sightings, key=lambda sighting: sighting[0].called_s):
            while position < len(by_answer) and (by_answer[position][0].answered_s or 0.0) < event.called_s:
                earlier = by_answer[position][1]
                end = earlier if earlier.is_over else end
                generation = max(generation, earlier.generation)
                position += 1
            if end is not None and not seen.is_over:
                shown = f"{state_name(end.state)}, then {state_name(seen.state)} to {event.client}"
                yield Violation("over", job_id, f"{job_id} was {shown}")
            if seen.generation < generation:
                shown = f"{generation}, then {seen.generation} to {event.client}"
                yield Violation("generation", job_id, f"{job_id} was in generation {shown}")


def _check_streams(events: Sequence[Event]) -> Iterator[Violation]:
    last: dict[tuple[str, int], Seen] = {}
    for event in events:
        if event.call is not Call.WATCH or not event.jobs:
            continue
        (seen,) = event.jobs
        before = last.get((event.client, event.stream))
        if before is not None and before.is_over:
            yield Violation("stream", seen.job_id, f"{seen.job_id}: {event.client}'s stream went on after the end")
        if before is not None and seen.generation < before.generation:
            yield Violation("stream", seen.job_id, f"{seen.job_id}: {event.client}'s stream went back a generation")
        last[event.client, event.stream] = seen


def _check_results(events: Sequence[Event]) -> Iterator[Violation]:
    digests: dict[str, set[str]] = defaultdict(set)
    for event in events:
        for seen in event.jobs:
            if seen.digest:
                digests[seen.job_id].add(seen.digest)
        if event.digest:
            digests[event.asked].add(event.digest)
    for job_id, found in digests.items():
        if len(found) > 1:
            yield Violation("one result", job_id, f"{job_id} had the results {', '.join(sorted(found))}")


def _check_missing(events: Sequence[Event]) -> Iterator[Violation]:
    acknowledged = {
        seen.job_id: event.answered_s or 0.0
        for event in sorted(events, key=lambda event: -(event.answered_s or 0.0))
        if event.call is Call.CREATE
        for seen in event.jobs
    }
    for event in events:
        if event.is_missing and acknowledged.get(event.asked, event.called_s) < event.called_s:
            yield Violation("missing", event.asked, f"{event.asked} was not found by {event.client}'s {event.call}")
        if event.call is Call.LIST:
            listed = {seen.job_id for seen in event.jobs}
            for job_id, since_s in acknowledged.items():
                if since_s < event.called_s and job_id not in listed:
                    yield Violation("missing", job_id, f"{job_id} was not in {event.client}'s list")


def _check_cancels(events: Sequence[Event]) -> Iterator[Violation]:
    for event in events:
        for seen in event.jobs if event.call is Call.CANCEL else ():
            if not seen.is_over:
                shown = f"a cancel was answered with {state_name(seen.state)}"
                yield Violation("cancelled", seen.job_id, f"{seen.job_id}: {shown}")


def _check_request_ids(events: Sequence[Event]) -> Iterator[Violation]:
    jobs: dict[str, set[str]] = defaultdict(set)
    ids: dict[str, set[str]] = defaultdict(set)
    for event in events:
        for seen in event.jobs:
            jobs[seen.request_id].add(seen.job_id)
            ids[seen.job_id].add(seen.request_id)
        if event.call is Call.CREATE:
            jobs[event.asked].update(seen.job_id for seen in event.jobs)
    for request_id, found in jobs.items():
        if len(found) > 1:
            yield Violation("request id", min(found), f"{request_id} made the jobs {', '.join(sorted(found))}")
    for job_id, names in ids.items():
        if len(names) > 1:
            yield Violation("request id", job_id, f"{job_id} had the request ids {', '.join(sorted(names))}")
