"""A transformer on several devices: the worker's own process leads, and runs each job together with the others.

To the fleet they are one worker. The others depend on the leader, and end when it does. When one of them ends, so does
the leader, at once, because it may wait inside of its device for what never comes. Its supervisor starts all again.

A member learns everything by its standard input. A job is `JOB`, the length in bytes as u64 little-endian, and the
bytes of a room; then follows one byte for each time that the stage asks whether the job was cancelled. On its standard
output a member says that it is `LOADED`, and after each job how that ended.

Threads: `run` is called in the stage's thread; a thread for each member waits for its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config import WorkerConfig
from triptych.errors import ModelInvalid, TriptychError, WorkerBroken
from triptych.stages import AnyStage, Place, Step
from triptych.transport import calls
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER, Role
from triptych.v1.model_pb2 import ModelDescription

Loaded = tuple[AnyStage, ModelDescription]

log = logging.getLogger(__name__)

JOB = b"J"
GO_ON, CANCELLED = b"0", b"1"
LOADED, DONE = "ready", "done"
JOB_LENGTH_BYTES = 8
EXIT_CODE = 70
"""The leader's, when a member has ended (EX_SOFTWARE of sysexits.h)."""
END_TIMEOUT_S = 10.0
"""For a member to end when its leader does, before it is killed."""


class Member:
    """One of the other processes."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._is_ending = False
        self._watch = threading.Thread(target=self._wait, name=f"member {self._process.pid}", daemon=True)
        self._watch.start()

    def send(self, *pieces: bytes | memoryview) -> None:
        """Write to its standard input. Raises WorkerBroken where nobody reads it any more."""
        sink: Any = self._process.stdin
        try:
            for piece in pieces:
                sink.write(piece)
            sink.flush()
        except BrokenPipeError as error:
            raise WorkerBroken(f"a process of this worker's group is gone: {error}") from error

    def heard(self) -> str:
        """Its next line; empty when it has ended. Waits as long as the member lives."""
        source: Any = self._process.stdout
        return str(source.readline(), "utf-8").strip()

    def end(self) -> None:
        """Have it end, and wait for that."""
        self._is_ending = True
        sink: Any = self._process.stdin
        sink.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        code = self._process.wait()
        if not self._is_ending:
            log.critical("process %d of this worker's group ended with %d: all end", self._process.pid, code)
            os._exit(EXIT_CODE)


class Group:
    """A stage whose processes run each job together. It is an `AnyStage`: the leader's own, but for `run`."""

    def __init__(self, stage: AnyStage, members: Sequence[Member]) -> None:
        self._stage = stage
        self._members = members

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def run(
        self, inputs: Mapping[str, object], on_step: Callable[[Step], None], cancelled: Callable[[], bool]
    ) -> dict[str, object]:
        """Runs the role for one job, in all processes.

        Raises as the stage does, and WorkerBroken where one process has met an error that the others haven't: they
        may wait for each other in vain.
        """
        self._send(*framed(inputs))

        def agreed() -> bool:
            is_cancelled = cancelled()
            self._send(CANCELLED if is_cancelled else GO_ON)
            return is_cancelled

        try:
            outputs = self._stage.run(inputs, on_step, agreed)
        except TriptychError as error:
            self._check_ends(how_ended(error))
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise WorkerBroken(f"its processes are out of step after {why}") from error
        self._check_ends(how_ended(None))
        return outputs

    def _send(self, *pieces: bytes | memoryview) -> None:
        for member in self._members:
            member.send(*pieces)

    def _check_ends(self, here: str) -> None:
        """Wait until all are done with the job. A member that isn't, within the group's timeout, ends."""
        others = [member.heard() for member in self._members]
        if any(other != here for other in others):
            raise WorkerBroken(f"its processes disagree on a job's end: {here} here, {', '.join(others)} elsewhere")


@contextlib.contextmanager
def open_group(
    role: Role.ValueType,
    config: WorkerConfig,
    load_stage: Callable[[Place | None], Loaded],
    settings: Sequence[str],
) -> Iterator[Loaded]:
    """The role's stage and its model, loaded by `load_stage`: in several processes where `config` says so.

    `settings` are the flags that make `config`, together with this process's environment: the others make theirs of
    them. Raises what loading raises, and ModelInvalid where another process can't load its part: its log says why.
    """
    if not config.parallel or role != ROLE_TRANSFORMER:
        yield load_stage(None)
        return
    with tempfile.TemporaryDirectory(prefix="triptych-group-") as scratch, contextlib.ExitStack() as stack:
        places = [
            Place(rank, len(config.device_names), str(Path(scratch, "rendezvous")), config.parallel_timeout_s)
            for rank in range(len(config.device_names))
        ]
        members = [Member(_command(place, settings)) for place in places[1:]]
        for member in members:
            stack.callback(member.end)
        stage, model = load_stage(places[0])
        if any(member.heard() != LOADED for member in members):
            raise ModelInvalid("another process of this worker's group could not load the model; it says why above")
        yield Group(stage, members), model


def _command(place: Place, settings: Sequence[str]) -> list[str]:
    """A member's command line."""
    module = f"{__package__}.group_member"
    return [sys.executable, "-P", "-m", module, *map(str, place), "--", *settings]


def framed(inputs: Mapping[str, object]) -> list[bytes | memoryview]:
    """A job as a member reads it."""
    pieces, size_bytes = calls.pieces_of(inputs)
    return [JOB, size_bytes.to_bytes(JOB_LENGTH_BYTES, "little"), *pieces]


def how_ended(error: TriptychError | None) -> str:
    """A job's end in a word, which is the same in all processes that agree."""
    return DONE if error is None else type(error).__name__
