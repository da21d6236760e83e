"""A fleet in an event loop: a process that ends by itself is noticed, and started again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chaos.network import HUB_ADDRESS, Network
from tests.chaos.plan import LEASE_S, WORKER_TIMEOUT_S, Shape
from tests.fleet.processes import CONTROLLER, READY_TIMEOUT_S, Fleet, free_port
from triptych import rpc
from triptych.rpc.several import ACTIVE_SERVICE
from triptych.transport.shared_memory import NAME_PREFIX, SHARED_MEMORY
from triptych_client import guarded_exec

STOP_TIMEOUT_S = 60.0
RELEASE_TIMEOUT_S = 1.0
"""A worker that leaves waits no longer for its rooms to be read: some leave with rooms that are still needed."""
EXIT_SICK = 1
"""With what a worker ends that finds itself broken."""
RESTART_S = 1.0
"""As a supervisor would start it again, so that the run goes on."""
GUARD = (sys.executable, "-I", "-S", guarded_exec.__file__, str(os.getpid()), "--")
"""Put before a command: it can't outlive the run, not even one that is killed."""
LAST_LINES = 15
ASK_TIMEOUT_S = 1.0
ASK_PAUSE_S = 0.1


class WatchedFleet(Fleet):
    """See the module's docstring. `open` and `close` take the place of the block.

    `flags_of` gives the flags of a role's workers; `network` puts each worker in its own namespace.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        flags_of: Callable[[str], Sequence[str]],
        network: Network | None = None,
        controller_flags: Sequence[str] = (),
        worker_timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        results = ("--result-url", f"file://{folder / 'results'}")
        self.controllers = [CONTROLLER, *(f"{CONTROLLER}-{n}" for n in range(1, shape.controllers))]
        if shape.controllers > 1:
            results += ("--lease-s", str(LEASE_S))
        super().__init__(
            folder,
            "",
            counts=shape.counts,
            controller_flags=("--rings", "rpc", *results, *controller_flags),
            prefix=lambda name: (*GUARD, *(network.prefix(name) if network and name in self.workers else ())),
            worker_timeout_s=worker_timeout_s,
        )
        self._flags_of = flags_of
        self._network = network
        host = HUB_ADDRESS if network else "127.0.0.1"
        self.addresses = {name: f"{host}:{free_port()}" for name in self.controllers}
        self.endpoint = ",".join(self.addresses.values())
        self.pids: set[int] = set()
        """Of every process that ever was."""
        self.extra_flags: Sequence[str] = ()
        """Of workers that are started from now on."""
        self.complaints: list[str] = []
        """Processes that ended by themselves, didn't become ready, or didn't stop."""
        self._wanted: set[str] = set()
        self._paused: set[str] = set()
        self._may_end: set[str] = set()
        """Those that may find themselves broken, and end."""
        self._ready: dict[str, asyncio.Event] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Start the controller, then all workers together, and wait until they are ready."""
        await self.begin(self.controllers)
        await self.begin(self.workers)

    async def close(self) -> None:
        """Stop the workers, then the controller; what doesn't stop is killed, and said."""
        for group in (self.workers, self.controllers):
            started = [name for name in group if name in self.processes]
            for name in started:
                self._end(name, signal.SIGTERM)
            for name in started:
                await self._wait_ended(name)

    async def begin(self, names: Iterable[str]) -> None:
        """Start processes together, and wait until they serve."""
        for name in names:
            self.spawn(name)
        for name in names:
            await self.ready(name)

    def command(self, name: str) -> list[str]:
        """See `Fleet`. Every other worker fetches by gRPC."""
        command = super().command(name)
        role, _, number = name.partition("-")
        if role == CONTROLLER:
            command[command.index("--address") + 1] = self.addresses[name]
            return command
        command += ["--rings", "rpc", "--mover", "rpc" if int(number) % 2 else "local"]
        command += ["--address", self._network.address(name)] if self._network else []
        return [*command, "--release-timeout-s", str(RELEASE_TIMEOUT_S), *self._flags_of(role), *self.extra_flags]

    def spawn(self, name: str, env: Mapping[str, str] = {}) -> None:
        """See `Fleet`. From now on it is watched."""
        super().spawn(name, env)
        self.pids.add(self.pid(name))
        self._wanted.add(name)
        self._paused.discard(name)
        self._may_end.discard(name)
        if len(self.controllers) > 1 and name in self.controllers:
            self._may_end.add(name)  # when its lease is over
        self._ready.setdefault(name, asyncio.Event()).clear()
        self._watches[name] = asyncio.create_task(self._watch(name, self.processes[name]))

    async def ready(self, name: str) -> None:
        """Wait until a process serves; a complaint when it doesn't in time."""
        try:
            await asyncio.wait_for(self._ready[name].wait(), READY_TIMEOUT_S)
        except TimeoutError:
            self._complain(name, f"wasn't ready within {READY_TIMEOUT_S:g} s")

    async def active(self, name: str) -> str:
        """The controller that serves, where `name` is one of several; else `name`."""
        if name not in self.controllers or len(self.controllers) == 1:
            return name
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for one in self.controllers:
                if await _is_active(self.addresses[one]):
                    return one
            await asyncio.sleep(ASK_PAUSE_S)
        self._complain(name, "or another was not active in time")
        return name

    async def end(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        self._end(name, signal.SIGKILL)
        await self._watches[name]

    async def leave(self, name: str) -> None:
        """SIGTERM; return when it has ended, which it must do by itself and in good order."""
        self._end(name, signal.SIGTERM)
        await self._wait_ended(name)
        code = self.processes[name].returncode
        if code:
            self._complain(name, f"left with exit code {code}")

    def limit(self, name: str, kind: int, soft: int) -> int:
        """Set a soft resource limit of a process; what it was. One that has ended in the meantime needs none."""
        self._may_end.add(name)
        try:
            before, hard = resource.prlimit(self.pid(name), kind)
            resource.prlimit(self.pid(name), kind, (soft, hard))
        except ProcessLookupError:
            return soft
        return before

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self._paused.add(name)
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._paused.discard(name)
        self.processes[name].send_signal(signal.SIGCONT)

    def arena(self, name: str) -> Path | None:
        """A worker's arena, where it has one."""
        return next(SHARED_MEMORY.glob(f"{NAME_PREFIX}{self.pid(name)}-*"), None)

    def arenas(self) -> list[Path]:
        """Files in `/dev/shm` of any process that ever was."""
        paths = SHARED_MEMORY.glob(NAME_PREFIX + "*")
        return [path for path in paths if int(path.name.removeprefix(NAME_PREFIX).partition("-")[0]) in self.pids]

    async def _watch(self, name: str, process: subprocess.Popen[str]) -> None:
        """Read a process's READY line, then wait for its end."""
        reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        while line := await reader.readline():
            if line.startswith(b"READY "):
                endpoint = self.endpoint
                self._hear(name, line.decode())
                self.endpoint = endpoint
                self._ready[name].set()
        code = process.wait()  # without its stdout it is all but gone
        if self._is_wanted(name, process):
            if not (name in self._may_end and code == EXIT_SICK):
                self._complain(name, f"ended by itself, exit code {code}")
            await asyncio.sleep(RESTART_S)
            if self._is_wanted(name, process):
                self.spawn(name)

    def _is_wanted(self, name: str, process: subprocess.Popen[str]) -> bool:
        return name in self._wanted and self.processes[name] is process

    def _complain(self, name: str, about: str) -> None:
        lines = "\n".join(f"    {line[:600]}" for line in self.log(name).splitlines()[-LAST_LINES:])
        self.complaints.append(f"{name} {about}\n{lines}")

    def _end(self, name: str, number: signal.Signals) -> None:
        self._wanted.discard(name)
        if name in self._paused:
            self.resume(name)
        self.processes[name].send_signal(number)

    async def _wait_ended(self, name: str) -> None:
        _done, late = await asyncio.wait([self._watches[name]], timeout=STOP_TIMEOUT_S)
        if late:
            self._complain(name, f"didn't stop within {STOP_TIMEOUT_S:g} s")
            await self.end(name)


async def _is_active(address: str) -> bool:
    async with rpc.open_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=ACTIVE_SERVICE)
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
