"""A fleet on this machine: which processes it has, in which order they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.config import WorkerConfig, module_path
from triptych.errors import InvalidRequest, MissingExtra, Unavailable
from triptych.transport import shared_memory
from triptych_client.launcher import Notice, RestartPolicy, Supervisor
from triptych_client.processes import ProcessSpec

CONTROLLER = "controller"

ROLES = ("encoder", "transformer", "decoder")

WORKERS_OF_ROLE_MAX = 64
"""More processes of one role than any one machine has devices for."""

START_TIMEOUT_S = 900.0
"""Longest start: reading the weights of a large model from a slow disk."""

STOP_MARGIN_S = 10.0
"""What a drained process may take beyond its own drain timeout before it is killed."""


EMBEDDED_DRAIN_TIMEOUT_S = 5.0
"""An embedded fleet has nothing left to finish when it stops."""


@dataclass(frozen=True)
class RolePlan:
    """The workers of one role."""

    count: int = 1
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class FleetPlan:
    """A controller and its workers, as command lines."""

    model: str
    state: Path
    address: str = "127.0.0.1:0"
    """Where the controller serves; port 0 takes a free one and keeps it over restarts."""
    revision: str = ""
    roles: dict[str, RolePlan] = field(default_factory=lambda: {role: RolePlan() for role in ROLES})
    threads: int = 0
    """Torch threads of each worker; 0 divides the cores among them."""
    mover: str = ""
    mooncake: str = ""
    rings: str = ""
    rdma_device: str = ""
    arena_bytes: int = 0
    result_url: str = ""
    trace_file: str = ""
    metrics_port: int = 0
    """Prometheus port of the controller; workers take the next ones. 0 means none."""
    tls: str = ""
    """Folder that `triptych certs init` made; each process takes the part of its role."""
    tokens: str = ""
    """File of clients' tokens."""
    client_address: str = ""
    """Where the controller serves clients that have a token and no certificate."""
    drain_timeout_s: float = 600.0
    logs: Path | None = None
    """Folder of the logs; `logs` in the state folder where it isn't given."""

    def __post_init__(self) -> None:
        check_model(self.model)
        if not self.tls and (self.tokens or self.client_address):
            raise InvalidRequest("tls", "", "a folder of certificates, where there are tokens or a client endpoint")
        for role, plan in self.roles.items():
            if not 1 <= plan.count <= WORKERS_OF_ROLE_MAX:
                raise InvalidRequest(f"{role}s", plan.count, f"1 to {WORKERS_OF_ROLE_MAX}")

    @property
    def worker_count(self) -> int:
        """Workers of all roles."""
        return sum(plan.count for plan in self.roles.values())

    def shared_memory_shortage(self) -> str:
        """A sentence where `/dev/shm` is smaller than the workers' arenas together; or else nothing."""
        return shared_memory.shortage(self.worker_count * (self.arena_bytes or WorkerConfig.arena_bytes))

    @property
    def log_folder(self) -> Path:
        """Where the logs go."""
        return self.logs or self.state / "logs"

    def controller(self) -> ProcessSpec:
        """The controller's process."""
        argv = _python(
            "controller",
            state=self.state,
            address=self.address,
            client_address=self.client_address,
            result_url=self.result_url,
        )
        return ProcessSpec(CONTROLLER, (*argv, *self._common(CONTROLLER, 0)), _environment(), keeps_address=True)

    def workers(self, controller_address: str) -> list[ProcessSpec]:
        """The workers' processes, in the order in which a job passes them."""
        specs: list[ProcessSpec] = []
        for role in ROLES:
            plan = self.roles[role]
            for index in range(plan.count):
                argv = _python(
                    role,
                    model=self.model,
                    revision=self.revision,
                    controller=controller_address,
                    device=plan.device,
                    dtype=plan.dtype,
                    threads=self.threads or threads_default(self.worker_count),
                    mover=self.mover,
                    mooncake=self.mooncake,
                    arena_bytes=self.arena_bytes or "",
                )
                common = self._common(role, len(specs) + 1)
                specs.append(ProcessSpec(f"{role}-{index}", (*argv, *common), _environment()))
        return specs

    def _common(self, role: str, index: int) -> Sequence[str]:
        return _flags(
            tls=Path(self.tls) / role if self.tls else "",
            tokens=self.tokens,
            rings=self.rings,
            rdma_device=self.rdma_device,
            trace_file=self.trace_file,
            metrics_port=self.metrics_port + index if self.metrics_port else "",
            drain_timeout_s=self.drain_timeout_s,
        )


def check_model(model: str) -> None:
    """Raises InvalidRequest for a folder that isn't there: soon, and not when three processes have loaded torch."""
    is_hub_id = model.count("/") == 1 and not model.startswith(("/", "."))
    if not model or not (is_hub_id or Path(model).is_dir()):
        raise InvalidRequest("model", model, "a folder that exists, or a hub id like owner/name")


def threads_default(worker_count: int = len(ROLES)) -> int:
    """Torch threads of one worker where all share this machine's cores; at least 1.

    Also what `--fused` takes, because the number of threads may change the last bits of a sum.
    """
    return max(1, len(os.sched_getaffinity(0)) // worker_count)


class Fleet:
    """A plan, running. Use `run_fleet`."""

    def __init__(self, plan: FleetPlan, notice: Notice | None = None, policy: RestartPolicy | None = None) -> None:
        self.plan = plan
        self.supervisor = Supervisor(plan.log_folder, policy, notice)
        self.endpoint = ""

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the controller, then all workers, and wait until all serve.

        Raises InvalidRequest when a process refuses its configuration, Unavailable when one can't start.
        """
        _sweep_arenas()
        self.supervisor.start(self.plan.controller())
        self.endpoint = await self.supervisor.ready(CONTROLLER, timeout_s)
        specs = self.plan.workers(self.endpoint)
        for spec in specs:
            self.supervisor.start(spec)
        waits = [asyncio.ensure_future(self.supervisor.ready(spec.name, timeout_s)) for spec in specs]
        try:
            await asyncio.gather(*waits)  # the first that can't start ends the wait for the others
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def stop(self) -> None:
        """Drain the workers in the order in which a job passes them, then the controller.

        A worker leaves when the rooms it holds are no longer needed, so those who read them must leave after it.
        """
        end_s = time.monotonic() + self.plan.drain_timeout_s + STOP_MARGIN_S
        for role in ROLES:
            names = [f"{role}-{index}" for index in range(self.plan.roles[role].count)]
            await self.supervisor.stop(names, max(end_s - time.monotonic(), STOP_MARGIN_S))
        await self.supervisor.stop([CONTROLLER], STOP_MARGIN_S)

    async def kill(self) -> None:
        """End all processes at once, and clear away what they left in /dev/shm."""
        await self.supervisor.kill()
        _sweep_arenas()


@contextlib.asynccontextmanager
async def run_fleet(
    plan: FleetPlan, notice: Notice | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> AsyncIterator[Fleet]:
    """A fleet that serves inside the block; drained when the block ends, killed when it ends by an error."""
    fleet = Fleet(plan, notice)
    try:
        await fleet.start(start_timeout_s)
        yield fleet
        await fleet.stop()
    finally:
        await fleet.kill()


@contextlib.asynccontextmanager
async def embedded_fleet(model: str, notice: Notice | None = None, **settings: Any) -> AsyncIterator[Fleet]:
    """A controller and one worker of each role for the length of the block, with a state folder that goes with it.

    `settings` are fields of `FleetPlan`. Where a process can't run, the folder stays, because the logs say why.
    """
    state = Path(tempfile.mkdtemp(prefix="triptych-"))
    keeps = False
    try:
        plan = FleetPlan(**{"model": model, "state": state, "drain_timeout_s": EMBEDDED_DRAIN_TIMEOUT_S, **settings})
        async with run_fleet(plan, notice) as fleet:
            yield fleet
    except Unavailable:
        keeps = True
        raise
    finally:
        if not keeps:
            shutil.rmtree(state, ignore_errors=True)


def _sweep_arenas() -> None:
    try:
        from triptych.transport.arena import sweep  # here, because clients without a fleet don't need what it imports
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "xxhash", "serve", "running a fleet on this machine") from error
    sweep()


def _environment() -> dict[str, str]:
    # Idle OpenMP threads that spin take the cores from the other processes. How a client proves who it is, in the same
    # shell, is no business of the fleet's. And what lies in the folder where somebody types `triptych up` is no code of
    # ours, be it called types.py: neither here (see `_python`) nor in what these processes start.
    proofs = {"TRIPTYCH_TLS": "", "TRIPTYCH_TOKEN_FILE": "", "TRIPTYCH_TOKEN": ""}
    return {"OMP_WAIT_POLICY": "PASSIVE", **proofs, "PYTHONSAFEPATH": "1", **module_path()}


def _python(service: str, **settings: object) -> Sequence[str]:
    return (sys.executable, "-P", "-m", f"services.{service}", *_flags(**settings))


def _flags(**settings: object) -> Sequence[str]:
    """Settings as flags; those that are empty are left to the process."""
    flags: list[str] = []
    for name, value in settings.items():
        if value != "":
            flags += ["--" + name.replace("_", "-"), str(value)]
    return flags
