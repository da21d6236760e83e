"""Hours of steady load without faults: does anything grow?

    python -m tests.chaos.soak --minutes 30 --table soak.md

Fake stages at 80 % of what the fleet was first measured to do at most. Every ten seconds: memory, file descriptors
and threads of every process, bytes in `/dev/shm`, and the hand-off's 99th percentile. At the end the slopes, and the
account and the history check of `tests.chaos`.

A hand-off is measured from jobs' own times, on the controller's clock: from the moment at which a stage's completion
was recorded to the moment at which the next stage's start was. That is what a job waits between two stages: the way
through the ring, the claim, and the wait for a worker to be free, which at this load is most of it. It comes from the
third of the jobs that are watched; where a watcher missed one of the two moments, the hand-off isn't counted.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos import history, runner
from tests.chaos.__main__ import STAGE_S
from tests.chaos.leaks import Sample
from tests.chaos.ledger import Account, settle
from tests.chaos.load import Load
from tests.chaos.plan import Shape, Submission, make_plan
from tests.chaos.report import success_counts
from tests.chaos.stages import FakeStages
from tests.fleet.watched import WatchedFleet
from triptych.v1.job_pb2 import (
    JOB_STATE_DECODING,
    JOB_STATE_DENOISED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODED,
    Job,
)

SHARE = 0.8
SAMPLE_S = 10.0
BURST_JOBS = 90
"""Sent at once to measure what the fleet does at most: over ten seconds of work."""
WARM_UP = 0.2
"""Share of the samples at the start that the slopes leave out: caches fill, pools grow."""
KEEP_JOBS = 1_000_000
"""The account at the end needs all of them."""
ROWS_MAX = 31
_BEFORE = {JOB_STATE_DENOISING: JOB_STATE_ENCODED, JOB_STATE_DECODING: JOB_STATE_DENOISED}


@dataclass(frozen=True)
class Row:
    """One sample of everything."""

    at_s: float
    processes: dict[str, Sample]
    shm_bytes: int
    handoff_p50_ms: float
    handoff_p99_ms: float
    handoff_count: int


@dataclass
class Handoffs:
    """Hand-offs since the last sample."""

    missed: int = 0
    _before: dict[str, Job] = field(default_factory=dict)
    _found_ms: list[float] = field(default_factory=list)

    def saw(self, job: Job) -> None:
        """A watching client got this."""
        before = self._before.get(job.job_id)
        if before is not None and before.state == job.state:
            return
        self._before[job.job_id] = job
        wanted = _BEFORE.get(job.state)
        if wanted is None or before is None:
            return
        if before.state != wanted or before.generation != job.generation:
            self.missed += 1
            return
        self._found_ms.append((job.update_time.ToNanoseconds() - before.update_time.ToNanoseconds()) / 1e6)

    def take(self) -> list[float]:
        """Milliseconds, in order of size, and begin anew."""
        found, self._found_ms = sorted(self._found_ms), []
        return found


async def soak(minutes: float, folder: Path, seed: int) -> tuple[list[Row], Account, list[str], str]:
    """Load a fleet. Returns the samples, the account, what else was wrong, and a sentence about the load."""
    stages, handoffs, rows = FakeStages(STAGE_S), Handoffs(), []
    started_s = time.monotonic()
    fleet = WatchedFleet(folder, Shape(), stages.worker_flags, controller_flags=("--keep-jobs", str(KEEP_JOBS)))
    try:
        await fleet.open()
        per_s = await _most(fleet, stages, folder)
        jobs = max(1, round(SHARE * per_s * minutes * 60))
        plan = make_plan(seed, Shape(jobs=jobs, faults=0, seconds=minutes * 60))
        started_s = time.monotonic()
        load = Load(fleet, stages, folder, lambda: time.monotonic() - started_s)
        load.on_update = handoffs.saw
        async with load.open(plan.shape.clients):
            working = asyncio.create_task(load.run(plan.submissions))
            while not working.done():
                await asyncio.wait([working], timeout=SAMPLE_S)
                if load.unfinished:
                    rows.append(_sample(time.monotonic() - started_s, fleet, handoffs))
            await working  # raises what a client met
            listed = [job for job in await load.list_all() if not job.request_id.startswith("chaos--")]
    finally:
        await fleet.close()
    submissions = {s.request_id: s for s in plan.submissions}
    expected = {request_id: stages.digest(s) for request_id, s in submissions.items()}
    account = settle(listed, submissions, load.acknowledged, expected, success_counts(folder / "controller.log"))
    wrong = [*fleet.complaints, *map(str, fleet.arenas()), *map(str, history.check(load.events))]
    about = (
        f"{minutes:g} minutes, {SHARE * per_s:.2f} jobs a second ({SHARE:.0%} of {per_s:.2f}), "
        f"{account.accepted} jobs, {handoffs.missed} hand-offs not seen whole"
    )
    return rows, account, wrong, about


async def _most(fleet: WatchedFleet, stages: FakeStages, folder: Path) -> float:
    """Jobs a second that the fleet does when there are always more."""
    plan = make_plan(0, Shape(jobs=BURST_JOBS, faults=0, seconds=0.1))
    load = Load(fleet, stages, folder, lambda: 0.2)
    async with load.open(plan.shape.clients):
        await load.run([_plain(submission) for submission in plan.submissions])
        ends_s = sorted(job.end_time.ToNanoseconds() / 1e9 for job in await load.list_all())
    quarter = len(ends_s) // 4
    middle = ends_s[quarter : 3 * quarter]
    return (len(middle) - 1) / (middle[-1] - middle[0])


def _plain(submission: Submission) -> Submission:
    """Without an early end, and named apart from the jobs of the soak itself."""
    number = -1 - submission.number
    return replace(submission, number=number, is_refused=False, cancel_after_s=None, deadline_s=None, encoder="")


def _sample(at_s: float, fleet: WatchedFleet, handoffs: Handoffs) -> Row:
    found = handoffs.take()
    processes = {name: Sample.of(fleet.pid(name)) for name in fleet.processes}
    blocks = sum(path.stat().st_blocks for path in fleet.arenas())
    p50, p99 = (_quantile(found, 0.5), _quantile(found, 0.99)) if found else (float("nan"), float("nan"))
    return Row(at_s, processes, 512 * blocks, p50, p99, len(found))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def slope_per_hour(rows: Sequence[Row], values: Sequence[float]) -> float:
    """Of the straight line through the samples after the warm-up; 0 where there are too few."""
    kept = [
        (row.at_s / 3600, value)
        for row, value in zip(rows, values, strict=True)
        if row.at_s >= WARM_UP * rows[-1].at_s and value == value
    ]
    if len(kept) < 3:
        return 0.0
    return statistics.linear_regression([hours for hours, _ in kept], [value for _, value in kept]).slope


def table(rows: Sequence[Row], about: str) -> str:
    """In Markdown: what each process held at first and at last, with its slope, and the course of the whole."""
    lines = [about, "", "| process | memory, MiB | slope, MiB/h | fds | slope, /h | threads | slope, /h |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name in rows[0].processes:
        samples = [row.processes[name] for row in rows]
        cells = [name]
        for values, digits in (
            ([sample.rss_bytes / 2**20 for sample in samples], 1),
            ([float(sample.fds) for sample in samples], 0),
            ([float(sample.threads) for sample in samples], 0),
        ):
            cells.append(f"{values[0]:.{digits}f} … {values[-1]:.{digits}f} (most {max(values):.{digits}f})")
            cells.append(f"{slope_per_hour(rows, values):+.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    shm = slope_per_hour(rows, [row.shm_bytes / 2**20 for row in rows])
    p99 = slope_per_hour(rows, [row.handoff_p99_ms for row in rows])
    lines += ["", f"Slope of `/dev/shm`: {shm:+.2f} MiB/h; of the hand-off's p99: {p99:+.1f} ms/h.", ""]
    lines += [
        "| minute | controller, MiB | all processes, MiB | `/dev/shm`, MiB | hand-off p50, ms | p99, ms | counted |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows[:: max(1, -(-len(rows) // ROWS_MAX))]:
        memory = {name: sample.rss_bytes / 2**20 for name, sample in row.processes.items()}
        cells = [f"{row.at_s / 60:.1f}", f"{memory['controller']:.1f}", f"{sum(memory.values()):.1f}"]
        cells += [f"{row.shm_bytes / 2**20:.1f}", f"{row.handoff_p50_ms:.0f}", f"{row.handoff_p99_ms:.0f}"]
        lines.append("| " + " | ".join([*cells, str(row.handoff_count)]) + " |")
    return "\n".join(lines)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", default="", help="write the table to this file, in Markdown")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="triptych-soak-"))
    rows, account, wrong, about = runner.supervised(soak(arguments.minutes, folder, arguments.seed))
    text = table(rows, about)
    print(text)
    if arguments.table:
        Path(arguments.table).write_text(text + "\n")
    wrong += [str(violation) for violation in account.violations]
    for line in wrong:
        print(f"VIOLATION  {line}")
    if wrong:
        print(f"logs are in {folder}")
        return 1
    runner.remove(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
