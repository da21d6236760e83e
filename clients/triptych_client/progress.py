"""How far a job is, on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from triptych.v1 import job_pb2
from triptych.v1.job_pb2 import Job
from triptych_client.jobs import state_name
from triptych_client.voice import say

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


class Display(Protocol):
    """Shows what happens to one job."""

    def say(self, words: str) -> None:
        """Show what is going on before there is a job."""

    def update(self, job: Job) -> None:
        """Show where the job stands."""


@contextlib.contextmanager
def display(*, quiet: bool = False) -> Iterator[Display]:
    """The display that fits stderr."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield bar
    else:
        yield Lines()


class Silent:
    """Shows nothing."""

    def say(self, words: str) -> None:
        """Nothing."""

    def update(self, job: Job) -> None:
        """Nothing."""


class Lines:
    """A line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._state: int = job_pb2.JOB_STATE_UNSPECIFIED
        self._said_s = 0.0

    def say(self, words: str) -> None:
        """Print the words."""
        say(words)

    def update(self, job: Job) -> None:
        """Print the state when it changes, and steps now and then."""
        now_s = time.monotonic()
        if job.state == self._state and not (is_stepping(job) and now_s - self._said_s >= PLAIN_STEP_S):
            return
        self._state, self._said_s = job.state, now_s
        self.say(f"{job.job_id}: {words_of(job)}")


class Bar:
    """A progress bar."""

    def __init__(self, progress: object, task: int) -> None:
        self._progress = progress
        self._task = task

    def say(self, words: str) -> None:
        """Show the words beside a pulsing bar."""
        self._progress.update(self._task, description=words, total=None)  # type: ignore[attr-defined]

    def update(self, job: Job) -> None:
        """Show stage and steps."""
        total = job.step_count if is_stepping(job) else None
        self._progress.update(  # type: ignore[attr-defined]
            self._task, description=words_of(job), total=total, completed=job.step if total else 0
        )


@contextlib.contextmanager
def _bar() -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description:<26}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task("starting", total=None))


def is_stepping(job: Job) -> bool:
    """Whether steps are being made whose number is known."""
    return job.state == job_pb2.JOB_STATE_DENOISING and job.step_count > 0


def words_of(job: Job) -> str:
    """Where a job stands, for example `denoising 3/20`."""
    words = WORDS_BY_STATE.get(job.state, state_name(job.state))
    return f"{words} {job.step}/{job.step_count}" if is_stepping(job) else words
