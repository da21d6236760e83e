"""A fleet on this machine: which processes it has, in which order they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from triptych import limits, rpc
from triptych.config import ControllerConfig, WorkerConfig, as_flags, load
from triptych.environment import module_path
from triptych.errors import DeadlinePassed, InvalidRequest, JournalFull, MissingExtra, TriptychError, Unavailable
from triptych.model.description import is_hub_id
from triptych.roles import ROLE_NAMES
from triptych.rpc.backoff import Backoff
from triptych.security import auth
from triptych.transport import shared_memory
from triptych.v1.fleet_service_pb2 import UnregisterWorkerRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych_client.launcher import Notice, Supervisor
from triptych_client.processes import ProcessSpec

log = logging.getLogger(__name__)

CONTROLLER = "controller"
SERVICES = "triptych_services" if (Path(__file__).parents[1] / "triptych_services").is_dir() else "services"
"""The package of the services: a wheel installs it beside this one, a checkout has it at its top."""

WORKERS_OF_ROLE_MAX = 64
"""More processes of one role than any one machine has devices for."""

START_TIMEOUT_S = 900.0
"""Longest start, beside what reading the weights takes (`triptych.limits`): packages, devices, a first job."""
HUB_START_TIMEOUT_S = 86_400.0
"""Longest start with a model of the hub, which may have to be downloaded first, over a slow line: a day."""

STOP_MARGIN_S = 10.0
"""What a drained process may take beyond its own drain timeout before it is killed."""

TELL_S = 30.0
"""How long to tell of an end: a controller that was killed beside its worker is back by then; later, silence tells."""
CALL_S = 5.0

PLACEHOLDER = "127.0.0.1:1"
"""The controller's address where it isn't known yet."""
_COMMAND_WORDS = 4
"""Of a process's command line, before its flags."""

EMBEDDED_DRAIN_TIMEOUT_S = 5.0
"""An embedded fleet has nothing left to finish when it stops."""

OWN_SETTINGS = frozenset(("controller", "instance_id", "token_file"))
"""Settings of a worker that the launcher gives: where the controller is, and who the worker is. Here it proves that by
its role's certificate."""
_CONTROLLERS = {f.name: f for f in fields(ControllerConfig)}
_WORKERS = {f.name: f for f in fields(WorkerConfig) if f.name not in ("address", "client_address", *OWN_SETTINGS)}
COMMON_SETTINGS = [f for name, f in _CONTROLLERS.items() if name in _WORKERS]
CONTROLLER_SETTINGS = [f for name, f in _CONTROLLERS.items() if name not in _WORKERS]
WORKER_SETTINGS = [f for name, f in _WORKERS.items() if name not in _CONTROLLERS]
SETTING_BY_NAME = {f.name: f for f in (*COMMON_SETTINGS, *CONTROLLER_SETTINGS, *WORKER_SETTINGS)}
"""What a fleet can be told, by name."""


@dataclass(frozen=True)
class RolePlan:
    """The workers of one role. An empty device or dtype is that of the fleet's settings."""

    count: int = 1
    device: str = ""
    dtype: str = ""


class FleetPlan:
    """A controller and its workers, as command lines."""

    def __init__(
        self,
        model: str,
        state: Path | str,
        roles: Mapping[str, RolePlan] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are fields of `ControllerConfig` and `WorkerConfig`. Each process gets those that it has.

        What isn't given is left to the processes' own environment and defaults, with these exceptions: `address` is the
        controller's, and a free port that it keeps over restarts; `lame_duck_s` is 0, as nobody balances calls here;
        `threads` divides the cores among the workers. `metrics_port` is the controller's, and workers take the next
        ones; of `tls` each process takes the folder of its role. Raises InvalidRequest.
        """
        check_model(model)
        self.model = model
        self.state = Path(state)
        self.roles = roles or {role: RolePlan() for role in ROLE_NAMES}
        self.log_folder = self.state / "logs"
        for name, value in settings.items():
            if name not in SETTING_BY_NAME:
                raise InvalidRequest(name, value, "one of the settings " + ", ".join(sorted(SETTING_BY_NAME)))
        self._settings = {"address": "127.0.0.1:0", "lame_duck_s": 0, **settings}
        for role, plan in self.roles.items():
            if not 1 <= plan.count <= WORKERS_OF_ROLE_MAX:
                raise InvalidRequest(f"{role}s", plan.count, f"1 to {WORKERS_OF_ROLE_MAX}")
        # Each process refuses bad settings itself, but some of them when others run already.
        self.config = load(ControllerConfig, self.controller().argv[_COMMAND_WORDS:])
        """The controller's settings."""
        workers = [load(WorkerConfig, spec.argv[_COMMAND_WORDS:]) for spec in self.workers(PLACEHOLDER)]
        self.arenas_bytes = sum(worker.arena_bytes for worker in workers)
        if not settings.get("tls") and (self.config.tokens or self.config.client_address):
            raise InvalidRequest("tls", "", "a folder of certificates, where there are tokens or a client endpoint")

    @property
    def start_timeout_s(self) -> float:
        """How long the start may take: the longer, the more there is to read."""
        folder = Path(self.model)
        if not folder.is_dir():
            return HUB_START_TIMEOUT_S
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return START_TIMEOUT_S + limits.allowance_s(size_bytes, limits.DISK_BYTES_PER_S_MIN)

    def controller(self) -> ProcessSpec:
        """The controller's process."""
        argv = self._argv(CONTROLLER, _CONTROLLERS, 0, state=self.state)
        return ProcessSpec(CONTROLLER, argv, _environment(), keeps_address=True)

    def workers(self, controller_address: str) -> list[ProcessSpec]:
        """The workers' processes, in the order in which a job passes them."""
        specs: list[ProcessSpec] = []
        threads = self._settings.get("threads") or threads_default(sum(plan.count for plan in self.roles.values()))
        for role in ROLE_NAMES:
            for index in range(self.roles[role].count):
                argv = self._argv(
                    role,
                    _WORKERS,
                    len(specs) + 1,
                    model=self.model,
                    controller=controller_address,
                    device=self.device_of(role),
                    dtype=self.roles[role].dtype or self._settings.get("dtype", ""),
                    threads=threads,
                )
                specs.append(ProcessSpec(f"{role}-{index}", argv, _environment(), tells_end=True))
        return specs

    def _argv(self, service: str, known: Container[str], index: int, **own: object) -> Sequence[str]:
        """A process's command line: those of the fleet's settings that it has, and its own."""
        settings = {name: value for name, value in self._settings.items() if name in known}
        if settings.get("tls"):
            own["tls"] = self.tls_folder(service)
        if settings.get("metrics_port"):
            own["metrics_port"] = settings["metrics_port"] + index
        command = (sys.executable, "-P", "-m", f"{SERVICES}.{service}")
        assert len(command) == _COMMAND_WORDS
        return (*command, *as_flags({**settings, **own}))

    def device_of(self, role: str) -> str:
        """The device of a role's workers; empty for their default."""
        return self.roles[role].device or str(self._settings.get("device", ""))

    def tls_folder(self, service: str) -> str:
        """The folder of a service's certificate; empty where there are none."""
        tls = self._settings.get("tls")
        return str(Path(tls) / service) if tls else ""


def check_model(model: str) -> None:
    """Raises InvalidRequest for a folder that isn't there: soon, and not when three processes have loaded torch."""
    if not model or not (is_hub_id(model) or Path(model).is_dir()):  # the path of no name is the current folder
        raise InvalidRequest("model", model, "a folder that exists, or a hub id like owner/name")


def threads_default(worker_count: int = len(ROLE_NAMES)) -> int:
    """Torch threads of one worker where all share this machine's cores; at least 1.

    Also what `--fused` takes, because the number of threads may change the last bits of a sum.
    """
    return max(1, len(os.sched_getaffinity(0)) // worker_count)


class Fleet:
    """A plan, running. Use `run_fleet`."""

    def __init__(self, plan: FleetPlan, notice: Notice | None = None) -> None:
        self.plan = plan
        self.supervisor = Supervisor(plan.log_folder, notice=notice, end_told=self._tell_end)
        self.endpoint = ""

    async def start(self) -> None:
        """Start the controller, then all workers, and wait until all serve, as long as the model needs.

        Raises InvalidRequest when a process refuses its configuration, Unavailable when one can't start.
        """
        supervisor = self.supervisor
        timeout_s = self.plan.start_timeout_s
        _sweep_arenas()
        supervisor.start(self.plan.controller())
        async with supervisor.telling("waiting", lambda: [CONTROLLER]):
            self.endpoint = await supervisor.ready(CONTROLLER, timeout_s)
        specs = self.plan.workers(self.endpoint)
        for spec in specs:
            supervisor.start(spec)
        supervisor.notify(f"waiting for {', '.join(spec.name for spec in specs)}, which load {self.plan.model}")
        waits = {spec.name: asyncio.ensure_future(supervisor.ready(spec.name, timeout_s)) for spec in specs}
        try:
            async with supervisor.telling("waiting", lambda: [name for name in waits if not waits[name].done()]):
                await asyncio.gather(*waits.values())  # the first that can't start ends the wait for the others
        finally:
            for wait in waits.values():
                wait.cancel()
            await asyncio.gather(*waits.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Drain the workers in the order in which a job passes them, then the controller.

        A worker leaves when the rooms it holds are no longer needed, so those who read them must leave after it.
        """
        config = self.plan.config
        end_s = time.monotonic() + config.lame_duck_s + config.drain_timeout_s + STOP_MARGIN_S
        for role in ROLE_NAMES:
            names = [f"{role}-{index}" for index in range(self.plan.roles[role].count)]
            await self.supervisor.stop(names, max(end_s - time.monotonic(), config.lame_duck_s + STOP_MARGIN_S))
        await self.supervisor.stop([CONTROLLER], config.lame_duck_s + STOP_MARGIN_S)

    async def wait(self) -> None:
        """Wait until a process can't be kept running, and raise why."""
        await self.supervisor.wait()

    def kill_now(self) -> None:
        """End all processes without waiting."""
        self.supervisor.kill_now()

    async def _tell_end(self, spec: ProcessSpec, instance_id: str, how: str) -> None:
        """Tell the controller that a worker's process has ended, by the certificate of its role.

        What the controller refuses, or doesn't hear within `TELL_S`, is logged: silence tells it then.
        """
        verb = "was ended by" if how.startswith("signal") else "ended with"
        request = UnregisterWorkerRequest(instance_id=instance_id, ended=f"{verb} {how}")
        backoff = Backoff()
        try:
            security = auth.open_security(self.plan.tls_folder(spec.name.rpartition("-")[0]), "")
            async with asyncio.timeout(TELL_S), rpc.open_channel(self.endpoint, security) as channel:
                stub = FleetServiceStub(channel)
                while True:
                    try:
                        await rpc.translate(stub.UnregisterWorker(request, timeout=CALL_S))
                        return
                    except (Unavailable, DeadlinePassed, JournalFull):
                        await asyncio.sleep(backoff.next_s())
        except (TriptychError, TimeoutError) as error:
            log.warning("the controller was not told that a worker %s: %s", request.ended, error or "no answer")

    async def kill(self) -> None:
        """End all processes without a drain, and remove what they left in /dev/shm."""
        await self.supervisor.kill()
        _sweep_arenas()


@contextlib.asynccontextmanager
async def run_fleet(plan: FleetPlan, notice: Notice | None = None) -> AsyncIterator[Fleet]:
    """A fleet that serves inside the block; drained when the block ends, killed when it ends by an error."""
    fleet = Fleet(plan, notice)
    try:
        await fleet.start()
        yield fleet
        await fleet.stop()
    finally:
        await fleet.kill()


@contextlib.asynccontextmanager
async def embedded_fleet(model: str, notice: Notice | None = None, **settings: Any) -> AsyncIterator[Fleet]:
    """A controller and one worker of each role for the length of the block, with a state folder that goes with it.

    `settings` are arguments of `FleetPlan`. The folder stays where a process can't run, because the logs say why, and
    where a file can't be written, because it has the result.
    """
    state = Path(tempfile.mkdtemp(prefix="triptych-"))
    keeps = False
    try:
        plan = FleetPlan(model, **{"state": state, "drain_timeout_s": EMBEDDED_DRAIN_TIMEOUT_S, **settings})
        async with run_fleet(plan, notice) as fleet:
            yield fleet
    except (Unavailable, OSError):
        keeps = True
        raise
    finally:
        if not keeps:
            shutil.rmtree(state, ignore_errors=True)


def _sweep_arenas() -> None:
    if find_spec("xxhash") is None:
        raise MissingExtra("xxhash", "serve", "running a fleet on this machine")
    shared_memory.sweep()


def _environment() -> dict[str, str]:
    # Idle OpenMP threads that spin take the cores from the other processes. A client's proof of who it is, in the same
    # shell, isn't the fleet's. A file in the current folder, types.py for example, is no module of the fleet: neither
    # for these processes (`-P`) nor for those that they start.
    proofs = {"TRIPTYCH_TLS": "", "TRIPTYCH_TOKEN_FILE": "", "TRIPTYCH_TOKEN": ""}
    return {"OMP_WAIT_POLICY": "PASSIVE", **proofs, "PYTHONSAFEPATH": "1", **module_path()}
