"""Processes of a fleet that begin as copies of one that has imported everything: a start without torch's four seconds.

`Parked` is such a process; a `ParkedFleet` has it fork its own processes, which then run the services' own programs as
`python -m` would. Each is a real process with its own ports, memory and end.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from tests.fleet.processes import Fleet

FORK_TIMEOUT_S = 30.0
START_TIMEOUT_S = 200.0
_MESSAGE_BYTES = 2**20


class Forked:
    """A process that `Parked` forked, as far as a fleet uses `subprocess.Popen`."""

    def __init__(self, pid: int, command: list[str], stdout: Any) -> None:
        self.pid = pid
        self.args = command
        self.stdout = stdout
        self._file = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended; how, only its parent knows. Raises TimeoutExpired."""
        if not self._file:
            return
        if not select.select([self._file], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        os.close(self._file)
        self._file = 0


class Parked:
    """A process with torch, diffusers and the services' code imported, which forks processes of fleets."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-m", "tests.fleet.parked", str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])
        theirs.close()
        self._socket = ours
        ours.settimeout(START_TIMEOUT_S)
        assert ours.recv(_MESSAGE_BYTES) == b"READY"
        ours.settimeout(FORK_TIMEOUT_S)

    def fork(self, command: list[str], log: Path, env: Mapping[str, str]) -> Forked:
        """A process that runs the command, `python -m MODULE ARGUMENTS...`."""
        reading, writing = os.pipe()
        with log.open("a") as stderr:
            message = json.dumps([command[command.index("-m") + 1 :], dict(env)]).encode()
            socket.send_fds(self._socket, [message], [writing, stderr.fileno()])
            pid = int(self._socket.recv(_MESSAGE_BYTES))
        os.close(writing)
        return Forked(pid, command, os.fdopen(reading))

    def __enter__(self) -> Parked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()
        self._process.wait(FORK_TIMEOUT_S)


class ParkedFleet(Fleet):
    """A fleet whose processes a parked one forks."""

    def __init__(self, parked: Parked, folder: Path, model: str, **others: Any) -> None:
        super().__init__(folder, model, **others)
        self._parked = parked

    def _launch(self, command: list[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
        return cast("subprocess.Popen[str]", self._parked.fork(command, log, env))


def _serve(orders: socket.socket) -> None:
    import diffusers.schedulers  # noqa: F401
    import transformers  # noqa: F401

    import services.controller.core
    import services.worker.process  # noqa: F401
    import triptych.stages.describe
    import triptych.stages.stage  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: the kernel forgets them at their end
    orders.send(b"READY")
    while True:
        message, files, _flags, _address = socket.recv_fds(orders, _MESSAGE_BYTES, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            orders.close()
            _become(*json.loads(message), files)
        for file in files:
            os.close(file)
        orders.send(str(pid).encode())


def _become(command: list[str], env: dict[str, str], files: list[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    module, *arguments = command
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
