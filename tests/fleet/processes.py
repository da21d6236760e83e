"""Real processes: start, kill -9, start again, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from triptych.environment import ClientAccess
from triptych_client import Client
from triptych_client.retry import RetryPolicy

CONTROLLER = "controller"
ROLES = ("encoder", "transformer", "decoder")
TEXT_ENCODER = "text_encoder"
READY_TIMEOUT_S = 200.0
STOP_TIMEOUT_S = 60.0
WORKER_TIMEOUT_S = 20.0
"""Longer than any process of a busy machine stands still: where nothing is killed, nothing counts as dead."""
DEATH_TIMEOUT_S = 5.0
"""Of fleets whose workers are killed or stopped: a death is soon seen, and a pause of a busy machine isn't one."""
HEARTBEAT_S = 0.3
ARENA_BYTES = 64 * 2**20
EVENTUALLY_S = 60.0


class Fleet:
    """A controller and workers over one model. Processes are named for example `transformer-0`.

    `prefix` gives what runs a process's command, by its name: a namespace, for example.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        *,
        counts: Mapping[str, int] | None = None,
        worker_flags: Sequence[str] = (),
        controller_flags: Sequence[str] = (),
        flags_by_name: Mapping[str, Sequence[str]] | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Callable[[str], Sequence[str]] = lambda _name: (),
        access: ClientAccess | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        worker_timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        self.folder = folder
        self.model = model
        self.access = access
        self.worker_flags = worker_flags
        self.controller_flags = controller_flags
        self.flags_by_name = flags_by_name or {}
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(env or {})}
        self._env.pop("MC_FORCE_TCP", None)  # set for good by a test that has started Mooncake in this process
        self._prefix = prefix
        self._ready_timeout_s = ready_timeout_s
        self.worker_timeout_s = worker_timeout_s
        self.workers = worker_names({**dict.fromkeys(ROLES, 1), **(counts or {})})
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, str] = {}
        self.client_addresses: dict[str, str] = {}
        """Where a process serves clients without a certificate, of those that do."""
        self.endpoint = ""
        """Where the controller serves, also after a restart; empty before its first start."""

    def __enter__(self) -> Fleet:
        try:
            self.start(CONTROLLER)
            for name in self.workers:  # together: most of a start is importing torch
                self.spawn(name)
            for name in self.workers:
                self.wait_ready(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        workers = [name for name in self.processes if name != CONTROLLER]
        for group in (workers, [CONTROLLER]):
            ending = [self.processes[name] for name in group if name in self.processes]
            for process in ending:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            for process in ending:
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                process.stdout.close()  # type: ignore[union-attr]

    def start(self, name: str) -> None:
        """Start a process and wait until it is READY."""
        self.spawn(name)
        self.wait_ready(name)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()
        self.processes[name].wait(STOP_TIMEOUT_S)

    @contextmanager
    def also(self, name: str, **env: str) -> Iterator[None]:
        """One more process for the length of a block; it must then end in good order."""
        self.spawn(name, env)
        try:
            self.wait_ready(name)
            yield
        finally:
            process = self.processes.pop(name)
            process.terminate()
            assert process.wait(STOP_TIMEOUT_S) == 0, self.log(name)
            process.stdout.close()  # type: ignore[union-attr]

    def client(self) -> Client:
        """A client that waits out a controller's restart."""
        return Client(self.endpoint, RetryPolicy(total_s_max=60.0), self.access)

    def pid(self, name: str) -> int:
        """Of the process that has the name now."""
        return self.processes[name].pid

    def name_of(self, pid: int) -> str:
        """The name of the process that has the id."""
        (name,) = (name for name, process in self.processes.items() if process.pid == pid)
        return name

    def log(self, name: str) -> str:
        """What a process has written to stderr."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def spawn(self, name: str, env: Mapping[str, str] = {}) -> None:
        """Start a process, and don't wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes[name] = self._launch(self.command(name), self.folder / f"{name}.log", {**self._env, **env})

    def command(self, name: str) -> list[str]:
        """Its command line."""
        role = name.partition("-")[0]
        command = [*self._prefix(name), sys.executable, "-m", f"services.{role}", "--lame-duck-s", "0"]
        if role == CONTROLLER:
            command += ["--state", str(self.folder / "state"), "--address", self.endpoint or "127.0.0.1:0"]
            command += ["--worker-timeout-s", str(self.worker_timeout_s), "--heartbeat-interval-s", str(HEARTBEAT_S)]
            command += self.controller_flags
        else:
            command += ["--model", self.model, "--threads", "1", "--arena-bytes", str(ARENA_BYTES)]
            if role != TEXT_ENCODER:  # which is no worker
                command += ["--controller", self.endpoint, *self.worker_flags]
        return [*command, *self.flags_by_name.get(name, ())]

    def _launch(self, command: list[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
        with log.open("a") as stderr:
            nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
            return subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=stderr, text=True, env=env)

    def wait_ready(self, name: str) -> None:
        """Wait until a process that was spawned is READY."""
        process = self.processes[name]
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(self._ready_timeout_s), f"{name} isn't ready: {self.log(name)}"
        self._hear(name, process.stdout.readline())

    def _hear(self, name: str, line: str) -> None:
        """Note where a process serves, by its READY line."""
        assert line.startswith("READY "), f"{name} ended: {self.log(name)}"
        _ready, self.addresses[name], *client_address = line.split()
        if client_address:
            (self.client_addresses[name],) = client_address
        if name == CONTROLLER:
            self.endpoint = self.addresses[name]


def worker_names(counts: Mapping[str, int]) -> list[str]:
    """Names of so many workers of each role."""
    return [f"{role}-{number}" for role, count in counts.items() for number in range(count)]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], timeout_s: float, about: str) -> None:
    """Poll a condition until it holds; an AssertionError that says what was waited for."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {about}"
        time.sleep(0.05)


async def eventually(condition: Callable[[], object], timeout_s: float = EVENTUALLY_S) -> None:
    """As `wait_until`, in an event loop."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (what is waited for is in another process, or behind a server)
            await asyncio.sleep(0.002)
