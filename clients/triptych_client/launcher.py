"""Keeps a list of processes running: restart with back-off, drain, and never an orphan.

One task per process holds its whole life: start, READY, exit, wait, start again. Two ends are not retried: exit code
2, which means bad configuration, and a process that keeps ending before it was ever ready. Either stops all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.errors import EXIT_CONFIGURATION, InvalidRequest, TriptychError, Unavailable
from triptych.rpc.backoff import Backoff
from triptych_client.processes import Process, ProcessSpec, last_message

Notice = Callable[[str], None]
"""Told, in a sentence, what happened to a process."""

EndTold = Callable[[ProcessSpec, str, str], Awaitable[None]]
"""Told of the end of a process that `tells_end`: its spec, its instance id, and how it ended. Must have a bound."""

INSTANCE_VARIABLE = "TRIPTYCH_INSTANCE_ID"
"""The setting by which a worker takes the identity that it is given."""
LAST_TOLD_S = 5.0
"""How long a stop waits for the last ends to be told: the controller is on this machine, and stops next."""
EVERY_S = 10.0
"""Between two sentences about a wait: a person begins to wonder, and a log of an hour's start stays readable."""
WORDS_CHARS_MAX = 120
"""Of a process's last message that are repeated."""


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

    def __init__(
        self,
        log_folder: Path,
        policy: RestartPolicy | None = None,
        notice: Notice | None = None,
        end_told: EndTold | None = None,
    ) -> None:
        self._log_folder = log_folder
        self._end_told = end_told
        self._telling: set[asyncio.Task[None]] = set()
        self._policy = policy or RestartPolicy()
        self._notice = notice
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, asyncio.Future[str]] = {}
        self._running: dict[str, Process] = {}
        self._stopping: set[str] = set()

    def notify(self, sentence: str) -> None:
        """Tell, if that works: the processes are kept even where a sentence is lost."""
        if self._notice is not None:
            with contextlib.suppress(Exception):  # the caller's own, so it may raise anything
                self._notice(sentence)

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
            async with self.telling("draining", lambda: [name for name in names if name in self._running]):
                _done, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                self.notify(f"{task.get_name()} has not ended after {timeout_s:g} s and is killed")
        await self.kill(names)
        if self._telling:
            await asyncio.wait(self._telling, timeout=LAST_TOLD_S)

    async def kill(self, names: Sequence[str] | None = None) -> None:
        """End the named processes (or all) without a drain, and wait until they are gone."""
        chosen = [name for name in self._tasks if names is None or name in names]
        self._stopping.update(chosen)
        for name in chosen:
            if name in self._running:
                self._running[name].kill()
            else:
                self._tasks[name].cancel()  # between two starts
        await asyncio.gather(*(self._tasks[name] for name in chosen), return_exceptions=True)
        if names is None:  # the controller is gone as well
            for task in self._telling:
                task.cancel()
            await asyncio.gather(*self._telling, return_exceptions=True)

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

    @contextlib.asynccontextmanager
    async def telling(
        self, about: str, waiting: Callable[[], Sequence[str]], every_s: float = EVERY_S
    ) -> AsyncIterator[None]:
        """While the block runs, tell now and then which processes it waits for, and the last message of each.

        Only messages that are logged from now on are repeated.
        """
        begins = {name: _size_bytes(self.log(name)) for name in waiting()}
        task = asyncio.create_task(self._tell_waits(about, waiting, begins, every_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _tell_waits(
        self, about: str, waiting: Callable[[], Sequence[str]], begins: Mapping[str, int], every_s: float
    ) -> None:
        start_s = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            said = {name: _shortened(last_message(self.log(name), begins.get(name, 0))) for name in waiting()}
            if said:
                names = ", ".join(f"{name} ({words})" if words else name for name, words in said.items())
                self.notify(f"{about} for {time.monotonic() - start_s:.0f} s: {names}")

    async def _supervise(self, spec: ProcessSpec) -> None:
        first = self._ready[spec.name]
        failed_count = 0
        # Nobody else starts these processes, so that there is nothing to spread.
        backoff = Backoff(self._policy.delay_s_initial, self._policy.delay_s_max, spread=0.0)
        while spec.name not in self._stopping:
            address = first.result() if first.done() and spec.keeps_address else ""
            process, code, lived_s = await self._run_once(spec, address)
            if spec.name in self._stopping:
                return
            failed_count += 1
            if not first.done() and (code == EXIT_CONFIGURATION or failed_count >= self._policy.starts_max):
                raise self._fatal(spec.name, process, code)
            if lived_s >= self._policy.stable_s:
                backoff.reset()
            delay_s = backoff.next_s()
            self.notify(f"{spec.name} ended ({process.ending(code)}) and starts again in {delay_s:g} s")
            await asyncio.sleep(delay_s)

    async def _run_once(self, spec: ProcessSpec, address: str) -> tuple[Process, int, float]:
        """Run a process to its end; the process, its exit code, and for how long it was ready (0 if never)."""
        argv = [*spec.argv, "--address", address] if address else spec.argv
        instance_id = uuid.uuid4().hex
        if spec.tells_end:
            spec = replace(spec, env={**spec.env, INSTANCE_VARIABLE: instance_id})
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
                self.notify(f"{spec.name} serves on {announced} (process {process.pid})")
            code = await process.wait()
            if code and spec.tells_end:
                self._tell_end(spec, instance_id, process.ending(code))
            return process, code, time.monotonic() - since_s if announced else 0.0
        finally:
            process.kill()  # only where this task was cancelled
            del self._running[spec.name]

    def _tell_end(self, spec: ProcessSpec, instance_id: str, how: str) -> None:
        """Beside the next start, which shouldn't wait for it. A worker that ends with 0 has unregistered by itself."""
        if self._end_told is not None:
            task = asyncio.ensure_future(self._end_told(spec, instance_id, how))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    def _fatal(self, name: str, process: Process, code: int) -> TriptychError:
        words = process.last_words()
        if code == EXIT_CONFIGURATION:
            return InvalidRequest.from_message(f"{name}: {words or 'its configuration is refused'}")
        reason = f": {words}" if words else ""
        return Unavailable(f"{name} can't start ({process.ending(code)}){reason}; its log is {self.log(name)}")


def _shortened(words: str) -> str:
    return words if len(words) <= WORDS_CHARS_MAX else words[:WORDS_CHARS_MAX] + "…"


def _size_bytes(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
