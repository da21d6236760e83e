"""Child processes that decode: started when they are needed, used again for a while, killed if they take too long.

Threads: any thread may call. Each call uses a child of its own and blocks for at most `bounds.WALL_S_MAX` each try. A
child is killed when the thread that started it ends, so call from threads that stay. A child's answer is untrusted,
since a file may have taken the child over.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from triptych.errors import InvalidRequest, TriptychError, Unavailable
from triptych.media.decoding import bounds
from triptych.media.decoding.headers import AUDIO, Budget, File

if TYPE_CHECKING:
    from triptych.media.decoding.values import Decoded, Frame, Sound  # late elsewhere: a controller needs none

log = logging.getLogger(__name__)

REQUESTS_MAX = 64
"""A child is replaced after so many requests, so that decoders' leaks don't add up."""


class Decoders:
    """Decodes in child processes. A context manager that ends them; they end with this process anyway."""

    def __init__(self, limits: bounds.Limits | None = None) -> None:
        self._limits = limits or bounds.Limits()
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._is_closed = False

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def check(self, files: Sequence[File]) -> None:
        """Raise InvalidRequest for the first file that can't be decoded whole, or if all together exceed a bound.

        Raises Unavailable if that isn't the files' fault: no process, or a busy machine.
        """
        self._exchange(files, wants_pixels=False)

    def decode(self, files: Sequence[File]) -> list[Decoded]:
        """Each file as its `mode` says: a picture, a video's frames, or sound. Raises as `check` does."""
        return self._exchange(files, wants_pixels=True)

    def close(self) -> None:
        """Kill all child processes. Calls under way end with Unavailable."""
        with self._lock:
            self._is_closed = True
            for child in (*self._idle, *self._busy):
                child.kill()
            idle, self._idle = self._idle, []
        for child in idle:
            child.reap()

    def _exchange(self, files: Sequence[File], *, wants_pixels: bool) -> list[Decoded]:
        if not files:
            return []
        while True:
            child = self._take()
            is_used = child.request_count > 0
            try:
                return child.exchange(files, wants_pixels)
            except _Idle:
                if not is_used:
                    raise Unavailable("the process that decodes media ended before it began") from None
            finally:
                self._give_back(child)

    def _take(self) -> _Child:
        with self._lock:
            if self._is_closed:
                raise Unavailable("this process is ending")
            child = self._idle.pop() if self._idle else _Child(self._limits)
            self._busy.add(child)
            return child

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
            if child.is_waiting and not self._is_closed and child.request_count < REQUESTS_MAX:
                self._idle.append(child)
                return
        child.kill()
        child.reap()


class _Idle(TriptychError):
    """The child had ended after a while without requests: ask another."""


class _Output(io.RawIOBase):
    """What a child writes, until `deadline_s` of the monotonic clock. Raises TimeoutError after that."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.deadline_s = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        _wait(self._descriptor, select.POLLIN, self.deadline_s)
        return os.readv(self._descriptor, [buffer])


def _wait(descriptor: int, event: int, deadline_s: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        raise TimeoutError


class _Child:
    """One process. Used by one thread at a time; `kill` may come from any."""

    def __init__(self, limits: bounds.Limits) -> None:
        self._limits = limits
        command = [sys.executable, "-P", "-m", "triptych.media.decoding.child"]
        command += [str(number) for number in (os.getpid(), limits.cpu_s, limits.memory_bytes, limits.idle_s)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin.fileno()
        os.set_blocking(self._input, False)
        self._output = _Output(self._process.stdout.fileno())
        self._answers = io.BufferedReader(self._output)
        self.request_count = 0
        self.is_waiting = True
        """Whether it has answered every request."""

    def exchange(self, files: Sequence[File], wants_pixels: bool) -> list[Decoded]:
        """See `Decoders`. Raises _Idle if the process ended before the request."""
        self._output.deadline_s = time.monotonic() + self._limits.wall_s
        self.is_waiting = False
        described = [(file.name, file.kind, len(file.data), *file[3:]) for file in files]
        try:
            self._write(json.dumps({"pixels": wants_pixels, "files": described}).encode() + b"\n")
            for file in files:
                self._write(file.data)
            self.request_count += 1
            answer, decoded = self._read_answer(files, wants_pixels)
        except (EOFError, BrokenPipeError):
            raise self._why(files) from None
        except TimeoutError:
            raise Unavailable(f"media are not decoded within {self._limits.wall_s:g} s; try again later") from None
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            log.error("the process that decodes media gave an impossible answer (%s)", type(error).__name__)
            raise Unavailable("the process that decodes media failed") from error
        self.is_waiting = True
        if answer:
            raise InvalidRequest.from_message(answer)
        return decoded

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> None:
        """Close the pipes and take its exit code. It was killed, so the kernel ends it soon."""
        with self._process:
            pass

    def _read_answer(self, files: Sequence[File], wants_pixels: bool) -> tuple[str, list[Decoded]]:
        from triptych.media.decoding.values import whole

        found: list[list[Frame | Sound]] = [[] for _ in files]
        budget = Budget()
        while "refused" not in (line := self._read_line()):
            number = int(line["file"])
            if not wants_pixels or not 0 <= number < len(files):
                raise ValueError("a file that wasn't asked for")
            file = files[number]
            found[number].append(
                self._sound(file, line, budget) if file.kind == AUDIO else self._frame(file, line, budget)
            )
        answer = str(line["refused"])
        if not wants_pixels or answer:
            return answer, []
        return "", [whole(file, pieces) for file, pieces in zip(files, found, strict=True)]

    def _frame(self, file: File, line: Mapping[str, Any], budget: Budget) -> Frame:
        from PIL import Image

        from triptych.media.decoding.timing import Shown
        from triptych.media.decoding.values import Frame

        width, height = int(line["width"]), int(line["height"])
        if min(width, height) < 1:
            raise ValueError("a picture without pixels")
        budget.take(file, width, height)
        picture = Image.frombytes(file.mode, (width, height), self._read(len(file.mode) * width * height))
        times = [Fraction(*ratio) for ratio in line["shown"]]
        rate = Fraction(*line["frames_per_second"]) if line["frames_per_second"] else None
        return Frame(picture, Shown(*times) if times else None, rate)

    def _sound(self, file: File, line: Mapping[str, Any], budget: Budget) -> Sound:
        import numpy as np

        from triptych.media.decoding.values import Sound

        channels, samples, rate = (int(line[name]) for name in ("channels", "samples", "rate"))
        if min(channels, samples, rate) < 1:
            raise ValueError("sound without samples")
        budget.take_sound(file, channels * samples)
        data = self._read(4 * channels * samples)
        return Sound(np.frombuffer(data, "<f4").reshape(channels, samples), rate)

    def _read(self, size_bytes: int) -> bytes:
        data = self._answers.read(size_bytes)
        if len(data) < size_bytes:
            raise EOFError
        return data

    def _why(self, files: Sequence[File]) -> TriptychError:
        """Why the child ended. Its CPU time or a decoder's crash is the files' fault."""
        try:
            code = self._process.wait(max(0.1, self._output.deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Unavailable("the process that decodes media hangs")
        if code == 0:
            return _Idle("the child had ended for want of requests")
        log.warning("the process that decodes media ended with code %d", code)
        shown = f"{len(files)} files of {sum(len(file.data) for file in files)} bytes"
        if code == -signal.SIGXCPU:
            return InvalidRequest("media", shown, f"files that are decoded within {self._limits.cpu_s} s of CPU time")
        if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
            return InvalidRequest("media", shown, "files that decoders can read without failing")
        return Unavailable(f"the process that decodes media ended (exit code {code})")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._input, select.POLLOUT, self._output.deadline_s)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._input, rest) :]

    def _read_line(self) -> dict[str, Any]:
        line = self._answers.readline(bounds.LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise EOFError if len(line) < bounds.LINE_BYTES_MAX else ValueError("a line without an end")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("a line that is no object")
        return found
