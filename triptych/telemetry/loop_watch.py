"""How long each callback of an event loop keeps all others waiting.

While a callback runs nobody else is served, and a worker whose heartbeat waits for too long counts as dead. So no call
may take longer than `HOLD_MAX_S`. What counts is the CPU time of the loop's thread, because on a busy machine any
callback may take long by the clock; the clock's time is told beside it. Time in the garbage collector is left out: it
hits any callback. The watch costs about two microseconds a callback.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import time
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HOLD_MAX_S = 0.05
"""Longest that a call may take at once: a tenth of the shortest heartbeat timeout that is of use."""
METHOD: ContextVar[str] = ContextVar("method", default="")
"""The RPC that the present task serves; `rpc` sets it."""


@dataclass(frozen=True)
class Hold:
    """One callback: seconds of CPU, seconds by the clock, what it was."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    what: str = ""

    def __str__(self) -> str:
        return f"{self.cpu_s * 1000:.1f} ms of CPU, {self.wall_s * 1000:.1f} ms by the clock: {self.what}"


class LoopWatch:
    """The holds of one loop. Only its thread writes; `longest` may be read from any."""

    def __init__(self) -> None:
        self.longest = Hold()
        self.too_long: list[Hold] = []
        """The first few above `HOLD_MAX_S`."""
        self.is_starting = False
        """While a process loads, holds delay nobody: they are left out."""
        self.file: Path | None = None
        """Append each hold to it that is longer than all before."""
        self._collecting_s = 0.0
        self._began_s = 0.0

    def run(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call it, and measure."""
        self._collecting_s = 0.0
        wall_s = time.perf_counter()
        cpu_s = time.thread_time()
        try:
            callback(*args)
        finally:
            cpu_s = time.thread_time() - cpu_s - self._collecting_s
            if cpu_s > self.longest.cpu_s or cpu_s > HOLD_MAX_S:
                self._note(cpu_s, time.perf_counter() - wall_s, callback)

    def collected(self, phase: str, _info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            self._collecting_s += time.thread_time() - self._began_s

    def _note(self, cpu_s: float, wall_s: float, callback: Callable[..., Any]) -> None:
        if self.is_starting:
            return
        hold = Hold(cpu_s, wall_s, " ".join(filter(None, (METHOD.get(), _name(callback)))))
        if hold.cpu_s > HOLD_MAX_S:
            log.warning("the event loop was held for %s", hold)
            if len(self.too_long) < 16:
                self.too_long.append(hold)
        if hold.cpu_s > self.longest.cpu_s:
            self.longest = hold
            if self.file is not None and hold.cpu_s > HOLD_MAX_S / 10:
                self._write(self.file)

    def _write(self, file: Path) -> None:
        try:
            with file.open("a") as target:
                target.write(f"{self.longest}\n")
        except OSError as error:
            log.warning("%s can't be written: %s", file, error)
            self.file = None


class WatchedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, with a watch on all that it calls."""

    def __init__(self) -> None:
        self.watch = LoopWatch()
        super().__init__()
        gc.callbacks.append(self.watch.collected)

    def close(self) -> None:
        if self.watch.collected in gc.callbacks:
            gc.callbacks.remove(self.watch.collected)
        super().close()

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        return super().call_soon(self.watch.run, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon_threadsafe(self.watch.run, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # `call_later` comes here, too.
        return super().call_at(when, self.watch.run, callback, *args, context=context)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        # gRPC's completions come this way.
        super().add_reader(fd, self.watch.run, callback, *args)


def watch_of(loop: asyncio.AbstractEventLoop) -> LoopWatch:
    """The watch of a loop; one that sees nothing where the loop has none."""
    return loop.watch if isinstance(loop, WatchedLoop) else LoopWatch()


def _name(callback: Callable[..., Any]) -> str:
    """The coroutine of a task's step, where it is one, else the function."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        return str(getattr(coroutine, "__qualname__", coroutine))
    return str(getattr(callback, "__qualname__", type(callback).__name__))
