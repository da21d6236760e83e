"""The processes under test: started, killed, paused, and started again; one that ends by itself is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.network import HUB_ADDRESS, Network
from tests.chaos.plan import CONTROLLER, WORKER_TIMEOUT_S, Shape
from triptych.transport.host import SHARED_MEMORY
from triptych.transport.shared_memory import NAME_PREFIX
from triptych_client import guarded_exec

READY_TIMEOUT_S = 120.0
"""A start of a process on a machine that does much else, and for a worker the end of its partition."""
STOP_TIMEOUT_S = 60.0
RELEASE_TIMEOUT_S = 1.0
"""A worker that leaves waits no longer for its rooms to be read: some leave with rooms that are still needed."""
EXIT_SICK = 1
"""With what a worker ends that finds itself broken."""
GUARD = (sys.executable, "-I", "-S", guarded_exec.__file__, str(os.getpid()), "--")
"""Put before a command: it can't outlive the run, not even one that is killed."""
LAST_LINES = 15
HEARTBEAT_S = 0.3


@dataclass
class Member:
    """One process and its name's history."""

    name: str
    process: asyncio.subprocess.Process | None = None
    address: str = ""
    is_wanted: bool = False
    """Whether its end would be nobody's wish."""
    is_paused: bool = False
    may_end: bool = False
    """Whether it may find itself broken, and end."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None


class Fleet:
    """A controller and workers, named for example `transformer-0`. `worker_flags` gives those of a role, `network`
    puts each worker in its own namespace."""

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        worker_flags: Callable[[str], Sequence[str]],
        network: Network | None = None,
        controller_flags: Sequence[str] = (),
        worker_timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        self.folder, self.shape, self.network = folder, shape, network
        self._worker_flags, self._controller_flags = worker_flags, controller_flags
        self._worker_timeout_s = worker_timeout_s
        self.members = {name: Member(name) for name in (CONTROLLER, *shape.workers)}
        self.members[CONTROLLER].address = f"{HUB_ADDRESS if network else '127.0.0.1'}:{_free_port()}"
        self.pids: set[int] = set()
        """Of every process that ever was."""
        self.extra_flags: Sequence[str] = ()
        """Of workers that are started from now on."""
        self.complaints: list[str] = []
        """Processes that ended by themselves, didn't become ready, or didn't stop."""

    @property
    def endpoint(self) -> str:
        """Where the controller serves, also after a restart."""
        return self.members[CONTROLLER].address

    async def open(self) -> None:
        """Start the controller, then all workers together, and wait until they are ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.start(CONTROLLER)
        await self.wait_ready(CONTROLLER)
        for name in self.shape.workers:
            await self.start(name)
        for name in self.shape.workers:
            await self.wait_ready(name)

    async def close(self) -> None:
        """Stop the workers, then the controller; what doesn't stop is killed, and said."""
        for group in (self.shape.workers, [CONTROLLER]):
            for name in group:
                self._end(name, signal.SIGTERM)
            for name in group:
                await self._wait_ended(name)

    async def start(self, name: str) -> None:
        """Start a process; don't wait for it."""
        member = self.members[name]
        with (self.folder / f"{name}.log").open("a") as log:
            member.process = await asyncio.create_subprocess_exec(
                *GUARD,
                *self._command(name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self.pids.add(member.process.pid)
        member.is_wanted, member.is_paused, member.may_end = True, False, False
        member.ready.clear()
        member.watch = asyncio.create_task(self._watch(member, member.process))

    async def wait_ready(self, name: str) -> None:
        """Wait until a process serves; a complaint when it doesn't in time."""
        try:
            await asyncio.wait_for(self.members[name].ready.wait(), READY_TIMEOUT_S)
        except TimeoutError:
            self.complaints.append(f"{name} wasn't ready within {READY_TIMEOUT_S:g} s\n{self.last_lines(name)}")

    async def kill(self, name: str) -> None:
        """kill -9."""
        self._end(name, signal.SIGKILL)
        process = self.members[name].process
        assert process is not None
        await process.wait()

    async def leave(self, name: str) -> None:
        """SIGTERM; return when it has ended, which it must do by itself and in good order."""
        self._end(name, signal.SIGTERM)
        await self._wait_ended(name)
        process = self.members[name].process
        if process is not None and process.returncode not in (0, None):
            self.complaints.append(f"{name} left with exit code {process.returncode}\n{self.last_lines(name)}")

    def limit(self, name: str, kind: int, soft: int) -> int:
        """Set a soft resource limit of a process; what it was. One that has ended in the meantime needs none."""
        self.members[name].may_end = True
        try:
            before, hard = resource.prlimit(self.pid(name), kind)
            resource.prlimit(self.pid(name), kind, (soft, hard))
        except ProcessLookupError:
            return soft
        return before

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.members[name].is_paused = True
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.members[name].is_paused = False
        self._signal(name, signal.SIGCONT)

    def pid(self, name: str) -> int:
        """Of the process that has the name now."""
        process = self.members[name].process
        assert process is not None
        return process.pid

    def arena(self, name: str) -> Path | None:
        """A worker's arena, where it has one."""
        return next(SHARED_MEMORY.glob(f"{NAME_PREFIX}{self.pid(name)}-*"), None)

    def arenas_left(self) -> list[str]:
        """Files in `/dev/shm` of any process that ever was."""
        names = (path.name for path in SHARED_MEMORY.glob(NAME_PREFIX + "*"))
        return [name for name in names if int(name.removeprefix(NAME_PREFIX).partition("-")[0]) in self.pids]

    def last_lines(self, name: str) -> str:
        """The end of a process's log."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line[:600]}" for line in lines[-LAST_LINES:])

    def _command(self, name: str) -> list[str]:
        role, _, number = name.partition("-")
        command = [sys.executable, "-m", f"services.{role}", "--rings", "rpc"]
        if role == CONTROLLER:
            flags = ["--state", str(self.folder / "state"), "--result-url", f"file://{self.folder / 'results'}"]
            flags += ["--worker-timeout-s", str(self._worker_timeout_s), "--heartbeat-interval-s", str(HEARTBEAT_S)]
            return [*command, "--address", self.endpoint, *flags, *self._controller_flags]
        mover = "rpc" if int(number) % 2 else "local"
        address = self.network.address(name) if self.network else "127.0.0.1:0"
        flags = ["--controller", self.endpoint, "--address", address, "--mover", mover, "--threads", "1"]
        flags += ["--release-timeout-s", str(RELEASE_TIMEOUT_S), *self._worker_flags(role), *self.extra_flags]
        return [*(self.network.prefix(name) if self.network else []), *command, *flags]

    async def _watch(self, member: Member, process: asyncio.subprocess.Process) -> None:
        """Read a process's READY line, then wait for its end."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.startswith(b"READY "):
                member.address = line.split()[1].decode()
                member.ready.set()
        code = await process.wait()
        if member.is_wanted and member.process is process:
            if not (member.may_end and code == EXIT_SICK):
                self._complain(member, code)
            await asyncio.sleep(1.0)  # as a supervisor would, so that the run goes on
            if member.is_wanted and member.process is process:
                await self.start(member.name)

    def _complain(self, member: Member, code: int) -> None:
        self.complaints.append(f"{member.name} ended by itself, exit code {code}\n{self.last_lines(member.name)}")

    def _end(self, name: str, number: signal.Signals) -> None:
        member = self.members[name]
        member.is_wanted = False
        if member.is_paused:
            self.resume(name)
        self._signal(name, number)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self.members[name].process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    async def _wait_ended(self, name: str) -> None:
        member = self.members[name]
        if member.process is None:
            return
        try:
            await asyncio.wait_for(member.process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.complaints.append(f"{name} didn't stop within {STOP_TIMEOUT_S:g} s\n{self.last_lines(name)}")
            await self.kill(name)
        if member.watch is not None:
            await member.watch


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
