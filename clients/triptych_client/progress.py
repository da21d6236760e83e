"""How far a job is, on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from triptych.v1 import job_pb2
from triptych.v1.job_pb2 import Job
from triptych_client.job_states import state_name
from triptych_client.terminal import say, spelled

if TYPE_CHECKING:  # it takes a while to import, and only a terminal needs it
    from rich.progress import Progress

PLAIN_STEP_S = 2.0
"""Least time between two lines about steps; changes of state are always said."""

WORDS_BY_STATE = {
    job_pb2.JOB_STATE_QUEUED: "waiting for an encoder",
    job_pb2.JOB_STATE_ENCODING: "encoding",
    job_pb2.JOB_STATE_ENCODED: "waiting for a transformer",
    job_pb2.JOB_STATE_DENOISING: "denoising",
    job_pb2.JOB_STATE_DENOISED: "waiting for a decoder",
    job_pb2.JOB_STATE_DECODING: "decoding",
}


class Display:
    """Shows what happens to one job. This one shows nothing."""

    def say(self, words: str) -> None:
        """Show what is going on before there is a job."""

    def update(self, job: Job) -> None:
        """Show where the job stands."""


@contextlib.contextmanager
def display(*, quiet: bool = False) -> Iterator[Display]:
    """The display that fits stderr."""
    if quiet:
        yield Display()
    elif sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
            TextColumn("{task.description:<26}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bar(progress, console.encoding)
    else:
        yield Lines()


class Lines(Display):
    """A line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._state: int = job_pb2.JOB_STATE_UNSPECIFIED
        self._said_s = 0.0

    def say(self, words: str) -> None:
        say(words)

    def update(self, job: Job) -> None:
        now_s = time.monotonic()
        if job.state == self._state and not (is_stepping(job) and now_s - self._said_s >= PLAIN_STEP_S):
            return
        self._state = job.state
        self._said_s = now_s
        self.say(f"{job.job_id}: {words_of(job)}")


class Bar(Display):
    """A progress bar."""

    def __init__(self, progress: Progress, encoding: str) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._encoding = encoding

    def say(self, words: str) -> None:
        self._progress.update(self._task, description=spelled(words, self._encoding), total=None)

    def update(self, job: Job) -> None:
        total = job.step_count if is_stepping(job) else None
        words = spelled(words_of(job), self._encoding)
        self._progress.update(self._task, description=words, total=total, completed=job.step if total else 0)


def is_stepping(job: Job) -> bool:
    """Whether steps are being made whose number is known."""
    return job.state == job_pb2.JOB_STATE_DENOISING and job.step_count > 0


def words_of(job: Job) -> str:
    """Where a job stands, for example `denoising 3/20`."""
    words = WORDS_BY_STATE.get(job.state, state_name(job.state))
    return f"{words} {job.step}/{job.step_count}" if is_stepping(job) else words
