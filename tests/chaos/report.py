"""What a run found: one row of a table, and the whole story of each violation."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import history
from tests.chaos.history import Call, Event, Violation
from tests.chaos.ledger import Account
from tests.chaos.plan import Kind
from triptych.v1.job_pb2 import Job

COLUMNS = (
    "seed",
    "accepted",
    "succeeded",
    "refused",
    "cancelled",
    "expired",
    "faults",
    "redeliveries",
    "lost",
    "wrong bits",
    "doubled",
    "history",
    "leaks",
    "seconds",
)
LOG_LINES_MAX = 60
"""Lines of logs that are shown of one job; the files have all."""


@dataclass
class Report:
    """Of one run."""

    seed: int
    account: Account
    faults: Counter[Kind]
    skipped: Mapping[str, Counter[Kind]]
    history: list[Violation]
    leaks: list[str]
    """Also processes that ended by themselves, or didn't end."""
    seconds: float
    impairment: str = ""
    controller: str = ""
    """Its descriptors, threads and memory, before and after."""
    events: list[Event] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether nothing was found."""
        return not (self.account.violations or self.history or self.leaks)

    def row(self) -> str:
        """In Markdown, below `header`."""
        a = self.account
        cells = [self.seed, a.accepted, a.succeeded, a.refused, a.cancelled, a.expired, faults_text(self.faults)]
        cells += [a.redeliveries, a.lost, a.wrong_bits, a.doubled, len(self.history), len(self.leaks)]
        return "| " + " | ".join(str(cell) for cell in [*cells, f"{self.seconds:.0f}"]) + " |"

    def text(self, folder: Path) -> str:
        """All that is wrong, with the story of each job concerned."""
        parts = [f"LEAK OR CRASH  {leak}" for leak in self.leaks]
        violations = [*self.account.violations, *self.history]
        parts += [f"VIOLATION  {violation}" for violation in violations]
        for job_id in sorted({violation.job_id for violation in violations if violation.job_id}):
            parts.append(self._story(job_id, folder))
        return "\n".join(parts)

    def _story(self, job_id: str, folder: Path) -> str:
        lines = [f"\n{job_id}, as its clients saw it:"]
        lines += [f"  {event}" for event in _without_repeats(history.about(self.events, job_id))]
        for job in self.jobs:
            if job.job_id == job_id:
                lines += [f"  attempt of rank {a.rank}: {a.reason}" for a in job.attempts]
        found = [f"  {path.stem}: {line}" for path in folder.glob("*.log") for line in lines_with(path, job_id)]
        return "\n".join([*lines, f"{job_id}, in the logs:", *sorted(found, key=_time_of)[:LOG_LINES_MAX]])


def header() -> str:
    """The table's head."""
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)])


def faults_text(faults: Mapping[Kind, int]) -> str:
    """Number of faults, then by kind."""
    by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    return f"{sum(faults.values())}: {by_kind}" if faults else "0"


def lines_with(path: Path, text: str) -> list[str]:
    """Lines of a log that hold `text`."""
    return [line[:400] for line in path.read_text(errors="replace").splitlines() if text in line]


def success_counts(controller_log: Path) -> Counter[str]:
    """How often the controllers' log says of each job that it succeeded."""
    found: Counter[str] = Counter()
    for line in lines_with(controller_log, "job is SUCCEEDED"):
        found[json.loads(line)["job_id"]] += 1
    return found


def _without_repeats(events: Sequence[Event]) -> list[Event]:
    """Without the lists that say of the job what the list before said."""
    lists = [event for event in events if event.call is Call.LIST]
    repeats = {id(after) for before, after in itertools.pairwise(lists) if before.jobs == after.jobs}
    return [event for event in events if id(event) not in repeats]


def _time_of(line: str) -> str:
    return line.partition('"time": ')[2][:30]
