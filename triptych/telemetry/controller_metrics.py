"""What a controller counts and measures: queues, jobs, workers, and its own upkeep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, get_args

from opentelemetry.metrics import Meter, Observation

from triptych.roles import ROLE_NAMES
from triptych.telemetry import tracing
from triptych.telemetry.instruments import Instruments
from triptych.v1.job_pb2 import AttemptKind, JobState
from triptych.v1.worker_pb2 import WorkerState

Outcome = Literal["succeeded", "failed", "dead_letter", "cancelled", "expired"]
"""How a job ended. A dead letter failed at the cap of attempts, or the same way again; a failed one is not to be tried
again."""
Task = Literal["tick", "expire", "publish", "prune", "sweep", "uploads"]
"""The controller's background tasks."""
Unknown = Literal["job", "lease", "worker"]
"""What the controller finds that nobody knew of: a job, a lease; or a worker that is idle beside work."""
UNFINISHED_STATES = ("queued", "encoding", "encoded", "denoising", "denoised", "decoding")
WORKER_STATES = tuple(
    WorkerState.Name(state).removeprefix("WORKER_STATE_").lower() for state in WorkerState.values() if state
)


def kind_name(kind: AttemptKind.ValueType) -> str:
    """How metrics and spans name a kind of failed attempt, for example `worker_sick`."""
    return AttemptKind.Name(kind).removeprefix("ATTEMPT_KIND_").lower()


ATTEMPT_KINDS = tuple(kind_name(kind) for kind in AttemptKind.values() if kind)


class RingDepth(NamedTuple):
    """How full one ring is, in slots."""

    ring: str
    ready_count: int
    leased_count: int


class ControllerMetrics:
    """The instruments of a controller. Without a meter every method does nothing."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._instruments = Instruments(meter)
        count = self._instruments.count
        self._accepted = count("triptych.jobs.accepted", "{job}", "Jobs accepted")
        self._ended = count("triptych.jobs.ended", "{job}", "Jobs that are over", outcome=get_args(Outcome))
        about = "Time from a job's acceptance to its end"
        self._job_seconds = self._instruments.seconds("triptych.job.duration", about)
        self._failed_attempts = count(
            *("triptych.attempts.failed", "{attempt}", "Attempts at a phase that ended badly"),
            role=ROLE_NAMES,
            kind=ATTEMPT_KINDS,
        )
        about = "Jobs that failed at the attempts cap"
        self._dead_letters = count("triptych.dead_letters", "{job}", about, stage=ROLE_NAMES)
        self._background_failures = count(
            *("triptych.background.failures", "{round}", "Rounds of the controller's own work that failed"),
            task=get_args(Task),
        )
        self._reconciliations = count(
            *("triptych.reconciliations", "{finding}", "What nobody knew of any more"), what=get_args(Unknown)
        )

    def job_accepted(self) -> None:
        """A job is in the journal."""
        self._accepted.add(1)

    def job_ended(self, outcome: Outcome, job_s: float, traceparent: str) -> None:
        """A job is over, `job_s` seconds after it was accepted; `traceparent` is that of its trace."""
        self._ended.add(1, {"outcome": outcome})
        self._job_seconds.record(job_s, {"outcome": outcome}, tracing.extract(traceparent))

    def attempt_failed(self, role: str, kind: AttemptKind.ValueType) -> None:
        """An attempt at a job's phase ended badly."""
        self._failed_attempts.add(1, {"role": role, "kind": kind_name(kind)})

    def dead_lettered(self, stage: str) -> None:
        """A job failed because `stage` reached the attempts cap."""
        self._dead_letters.add(1, {"stage": stage})

    def background_failed(self, task: Task) -> None:
        """A round of the controller's own work (`upkeep.py`) failed, and is tried again."""
        self._background_failures.add(1, {"task": task})

    def reconciled(self, what: Unknown) -> None:
        """The controller took up what nobody knew of."""
        self._reconciliations.add(1, {"what": what})

    def watch_rings(self, depths: Callable[[], Iterable[RingDepth]]) -> None:
        """Show the rings as `depths` returns them. The rings count as empty when nothing waits for a claimer."""

        def ready_count() -> int:
            return sum(depth.ready_count for depth in depths())

        def sizes() -> list[Observation]:
            return [Observation(depth.ready_count, {"ring": depth.ring}) for depth in depths()]

        def in_flight() -> list[Observation]:
            return [Observation(depth.leased_count, {"ring": depth.ring}) for depth in depths()]

        gauge = self._instruments.gauge
        gauge("queue_sizes", "", "Dispatches that wait for a claimer, by ring", sizes)
        gauge("queue_in_flight", "", "Dispatches that are held by a worker, by ring", in_flight)
        gauge(
            *("queue_total_pending", "", "Dispatches that wait for a claimer, in all rings"),
            lambda: [Observation(ready_count())],
        )
        gauge(
            *("all_queues_empty", "", "1 when no dispatch waits, else 0"), lambda: [Observation(int(not ready_count()))]
        )

    def watch_journal(self, full_count: Callable[[], int]) -> None:
        """Show how often the journal took no change."""
        about = "Writes that the journal refused"
        self._instruments.total("triptych.journal.full", "{write}", about, lambda: [Observation(full_count())])

    def watch_jobs(self, counts: Mapping[JobState.ValueType, int]) -> None:
        """Show how many jobs aren't over, by state, as `counts` has them when it is read."""

        def read() -> list[Observation]:
            return [
                Observation(counts.get(JobState.Value(f"JOB_STATE_{state.upper()}"), 0), {"state": state})
                for state in UNFINISHED_STATES
            ]

        self._instruments.amount("triptych.jobs.unfinished", "{job}", "Jobs that aren't over", read)

    def watch_workers(self, counts: Callable[[], Mapping[tuple[str, WorkerState.ValueType], int]]) -> None:
        """Show how many workers there are by role and state, with a 0 where there is none."""

        def read() -> list[Observation]:
            found = counts()
            return [
                Observation(
                    found.get((role, WorkerState.Value(f"WORKER_STATE_{state.upper()}")), 0),
                    {"role": role, "state": state},
                )
                for role in ROLE_NAMES
                for state in WORKER_STATES
            ]

        self._instruments.amount("triptych.workers", "{worker}", "Workers that are registered", read)
