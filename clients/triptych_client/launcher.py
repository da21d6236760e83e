"""Keeps a list of processes running: restart with back-off, drain, and never an orphan.

One task per process holds its whole life: start, READY, exit, wait, start again. Two ends are not retried: exit code
2, which means bad configuration, and a process that keeps ending before it was ever ready. Either stops all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import InvalidRequest, TriptychError, Unavailable
from triptych_client.processes import Process, ProcessSpec

EXIT_CONFIGURATION = 2
"""What a service exits with when its settings can't be used."""

Notice = Callable[[str], None]
"""Told, in a sentence, what happened to a process."""


@dataclass(frozen=True)
class RestartPolicy:
    """How to start a process again."""

    delay_s_initial: float = 0.25
    """First wait: a single crash should cost less than loading the model."""
    delay_s_max: float = 30.0
    """Longest wait: a process that can't live is tried twice a minute, which costs little."""
    stable_s: float = 60.0
    """A process that was ready for so long starts again from the first wait."""
    starts_max: int = 3
    """Attempts at becoming ready for the first time."""


class Supervisor:
    """Starts processes and keeps them. All methods belong to one event loop, whose thread the children live with."""

    def __init__(self, log_folder: Path, policy: RestartPolicy | None = None, notice: Notice | None = None) -> None:
        self._log_folder = log_folder
        self._policy = policy or RestartPolicy()
        self._tell = notice or (lambda _sentence: None)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, asyncio.Future[str]] = {}
        self._running: dict[str, Process] = {}
        self._stopping: set[str] = set()

    def start(self, spec: ProcessSpec) -> None:
        """Begin to keep a process running. Its name must be new."""
        assert spec.name not in self._tasks, spec.name
        self._ready[spec.name] = asyncio.get_running_loop().create_future()
        self._tasks[spec.name] = asyncio.create_task(self._supervise(spec), name=spec.name)

    async def ready(self, name: str, timeout_s: float) -> str:
        """Return the address that a process first announced.

        Raises InvalidRequest (its configuration is bad) or Unavailable (it keeps ending, or takes too long).
        """
        task = self._tasks[name]
        await asyncio.wait((task, self._ready[name]), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._ready[name].done():
            return self._ready[name].result()
        if task.done():
            task.result()
        raise Unavailable(f"{name} was not ready after {timeout_s:g} s; its log is {self.log(name)}")

    async def wait(self) -> None:
        """Wait until a process can't be kept running, and raise why."""
        done, _pending = await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self, names: Sequence[str], timeout_s: float) -> None:
        """Drain the named processes: SIGTERM, and SIGKILL for those that have not ended `timeout_s` later."""
        self._stopping.update(names)
        for name in names:
            if name in self._running:
                self._running[name].terminate()
            elif name in self._tasks:
                self._tasks[name].cancel()  # between two starts
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        if tasks:
            _done, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                self._notice(f"{task.get_name()} has not ended after {timeout_s:g} s and is killed")
        await self.kill(names)

    async def kill(self, names: Sequence[str] | None = None) -> None:
        """End the named processes (or all) at once, and wait until they are gone."""
        chosen = [name for name in self._tasks if names is None or name in names]
        self._stopping.update(chosen)
        for name in chosen:
            if name in self._running:
                self._running[name].kill()
            else:
                self._tasks[name].cancel()  # between two starts
        await asyncio.gather(*(self._tasks[name] for name in chosen), return_exceptions=True)

    def kill_now(self) -> None:
        """End all processes without waiting; for a second Ctrl-C."""
        self._stopping.update(self._tasks)
        for process in self._running.values():
            process.kill()

    def log(self, name: str) -> Path:
        """Where a process's log is."""
        return self._log_folder / f"{name}.log"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that run."""
        return {name: process.pid for name, process in self._running.items()}

    def _notice(self, sentence: str) -> None:
        """Tell, if that works: whatever becomes of a sentence, the processes are kept."""
        with contextlib.suppress(Exception):  # the caller's own, so it may raise anything
            self._tell(sentence)

    async def _supervise(self, spec: ProcessSpec) -> None:
        first, failed_count, delay_s = self._ready[spec.name], 0, self._policy.delay_s_initial
        while spec.name not in self._stopping:
            address = first.result() if first.done() and spec.keeps_address else ""
            lived_s, code, words = await self._run_once(spec, address)
            if spec.name in self._stopping:
                return
            failed_count += 1
            if not first.done() and (code == EXIT_CONFIGURATION or failed_count >= self._policy.starts_max):
                raise self._fatal(spec.name, code, words)
            if lived_s >= self._policy.stable_s:
                delay_s = self._policy.delay_s_initial
            self._notice(f"{spec.name} ended ({_ending(code)}) and starts again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, self._policy.delay_s_max)

    async def _run_once(self, spec: ProcessSpec, address: str) -> tuple[float, int, str]:
        """Run the process to its end. Returns for how long it was ready (0 if never), exit code and last words."""
        argv = [*spec.argv, "--address", address] if address else spec.argv
        process = await Process.start(spec, self.log(spec.name), argv)
        self._running[spec.name] = process
        if spec.name in self._stopping:
            process.terminate()
        try:
            announced = await process.ready()
            since_s = time.monotonic()
            if announced and not self._ready[spec.name].done():
                self._ready[spec.name].set_result(announced)
            if announced:
                self._notice(f"{spec.name} serves on {announced} (process {process.pid})")
            code = await process.wait()
            return (time.monotonic() - since_s if announced else 0.0), code, process.last_words()
        finally:
            process.kill()  # only where this task was cancelled
            del self._running[spec.name]

    def _fatal(self, name: str, code: int, words: str) -> TriptychError:
        if code == EXIT_CONFIGURATION:
            return InvalidRequest.from_message(f"{name}: {words or 'its configuration is refused'}")
        reason = f": {words}" if words else ""
        return Unavailable(f"{name} can't start ({_ending(code)}){reason}; its log is {self.log(name)}")


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
