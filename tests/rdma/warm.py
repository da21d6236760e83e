"""Processes that start warm: one process imports torch and diffusers once, and forks for each that is asked for.

On an emulated machine the import takes a minute, and a fleet needs it five times. What is forked is a process like any
other: it has its own arguments, output and end, and can be killed.

The server reads JSON lines `{"argv": [module, flags...], "out": path, "err": path}` on stdin and answers with process
ids. It starts no thread and uses neither torch nor gRPC itself, so that forking is safe.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

IMPORT_TIMEOUT_S = 300.0
"""Longest import of torch and diffusers on an emulated and busy machine."""


class WarmProcess:
    """One forked process; what `subprocess.Popen` of it would offer."""

    def __init__(self, pid: int, stdout: IO[str]) -> None:
        self.pid, self.stdout = pid, stdout
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs. Its exit status is its parent's to know; 0 stands for any."""
        return 0 if self._ends_within(0) else None

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if not self._ends_within(timeout_s):
            raise subprocess.TimeoutExpired(str(self.pid), timeout_s or 0)
        return 0

    def send_signal(self, number: int) -> None:
        """Signal it, if it is still there."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _ends_within(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._handle], [], [], timeout_s)[0])


class WarmServer:
    """Starts the server, and processes through it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "tests.rdma.warm"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **env})
        self._count, self._is_ready = 0, False

    def start(self, argv: list[str], log: Path) -> WarmProcess:
        """Run a module with its flags; what it writes to stderr is appended to `log`."""
        self._count += 1
        out = Path(self._folder.name) / str(self._count)
        os.mkfifo(out)
        reader = os.fdopen(os.open(out, os.O_RDONLY | os.O_NONBLOCK))
        os.set_blocking(reader.fileno(), True)
        return WarmProcess(self._ask({"argv": argv, "out": str(out), "err": str(log)}), reader)

    def run(self, argv: list[str], log: Path, timeout_s: float) -> None:
        """Run a module to its end. Raises subprocess.TimeoutExpired."""
        self.start(argv, log).wait(timeout_s)

    def wait_until_ready(self) -> None:
        """Wait for the end of the import."""
        if not self._is_ready:
            assert self._answer() == {"ready": True}
            self._is_ready = True

    def close(self) -> None:
        """End the server. What it has started goes on."""
        self._server.kill()
        self._server.communicate()
        self._folder.cleanup()

    def _ask(self, request: Mapping[str, Any]) -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._answer()["pid"])

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        assert select.select([self._server.stdout], [], [], IMPORT_TIMEOUT_S)[0], "the warm server doesn't answer"
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


def serve() -> None:
    """Import what takes long, then fork until stdin ends."""
    import services.worker.process  # noqa: F401
    import triptych.stages.stage  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(request)
        print(json.dumps({"pid": pid}), flush=True)


def become(request: Mapping[str, Any]) -> None:
    """Run the module in this process, and end with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for path, number, flags in (
        (os.devnull, 0, os.O_RDONLY),
        (request["out"], 1, os.O_WRONLY),
        (request["err"], 2, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), number)
    module, *flags = request["argv"]
    sys.argv = [module, *flags]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
