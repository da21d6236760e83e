"""Real processes for end-to-end tests: start, kill -9, start again, and nothing left behind."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from triptych.config import ClientAccess
from triptych_client import Client
from triptych_client.retry import RetryPolicy

ROLES = ("encoder", "transformer", "decoder")
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
WORKER_TIMEOUT_S = 2.0


class Fleet:
    """A controller and workers over one model. Processes are named for example `transformer-0`."""

    def __init__(
        self,
        folder: Path,
        model: str,
        *,
        counts: Mapping[str, int] | None = None,
        worker_flags: tuple[str, ...] = (),
        controller_flags: tuple[str, ...] = (),
        flags_by_name: Mapping[str, tuple[str, ...]] | None = None,
        env: Mapping[str, str] | None = None,
        access: ClientAccess | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.folder, self.model, self.access = folder, model, access
        self._flags_by_name, self._ready_timeout_s = flags_by_name or {}, ready_timeout_s
        self._worker_flags, self.controller_flags = worker_flags, controller_flags
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(env or {})}
        self._env.pop("MC_FORCE_TCP", None)  # set for good by a test that has started Mooncake in this process
        self._counts = {**dict.fromkeys(ROLES, 1), **(counts or {})}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, str] = {}
        self.client_addresses: dict[str, str] = {}
        """Where a process serves clients without a certificate, of those that do."""
        self.endpoint = ""

    def __enter__(self) -> Fleet:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start("controller")
            self.endpoint = self.addresses["controller"]
            names = [f"{role}-{n}" for role, count in self._counts.items() for n in range(count)]
            for name in names:  # together: most of a start is importing torch
                self.spawn(name)
            for name in names:
                self.wait_ready(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        workers = [name for name in self.processes if name != "controller"]
        for group in (workers, ["controller"]):
            for name in group:
                if name in self.processes and self.processes[name].poll() is None:
                    self.processes[name].send_signal(signal.SIGCONT)
                    self.processes[name].terminate()
            for name in group:
                if name in self.processes:
                    self._reap(self.processes[name])

    def start(self, name: str) -> None:
        """Start a process and wait until it is READY."""
        self.spawn(name)
        self.wait_ready(name)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()
        self.processes[name].wait(STOP_TIMEOUT_S)

    def client(self) -> Client:
        """A client that waits out a controller's restart."""
        return Client(self.endpoint, RetryPolicy(total_s_max=60.0), self.access)

    def log(self, name: str) -> str:
        """What a process has written to stderr."""
        return (self.folder / f"{name}.log").read_text()

    def spawn(self, name: str) -> None:
        """Start a process, and don't wait for it."""
        role = name.partition("-")[0]
        command = [f"services.{role}"]
        if role == "controller":
            command += ["--state", str(self.folder / "state"), "--address", self.endpoint or "127.0.0.1:0"]
            command += ["--worker-timeout-s", str(WORKER_TIMEOUT_S), "--heartbeat-interval-s", "0.3"]
            command += self.controller_flags
        else:
            command += ["--model", self.model, "--controller", self.endpoint, "--threads", "1"]
            command += ["--arena-bytes", str(64 * 2**20), *self._worker_flags]
        command += self._flags_by_name.get(name, ())
        self.processes[name] = self._launch(command, self.folder / f"{name}.log")

    def _launch(self, module: list[str], log: Path) -> subprocess.Popen[str]:
        """Run a module with its flags."""
        with log.open("a") as stderr:
            command = [sys.executable, "-m", *module]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=self._env)

    def wait_ready(self, name: str) -> None:
        """Wait until a process that was spawned is READY."""
        process = self.processes[name]
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(self._ready_timeout_s), f"{name} isn't ready: {self.log(name)}"
        line = process.stdout.readline()
        assert line.startswith("READY "), f"{name} ended: {self.log(name)}"
        _ready, self.addresses[name], *client_address = line.split()
        if client_address:
            (self.client_addresses[name],) = client_address

    def _reap(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(condition: object, timeout_s: float, about: str) -> None:
    """Poll a callable until it is true; an AssertionError that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {about}"
        time.sleep(0.05)
