"""Which processes a fleet has, as command lines, and in which order and how long they are drained.

Where they run is for others to say: on this machine (`local_fleet.py`), or on a Ray cluster (`ray_fleet.py`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from triptych import limits
from triptych.config import ControllerConfig, TextEncoderConfig, WorkerConfig, as_flags, load
from triptych.environment import module_path
from triptych.errors import InvalidRequest
from triptych.model.description import is_hub_id
from triptych.roles import ROLE_NAMES
from triptych_client.processes import ProcessSpec

CONTROLLER = "controller"
TEXT_ENCODER = "text_encoder"
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

PLACEHOLDER = "127.0.0.1:1"
"""The controller's address where it isn't known yet."""
_COMMAND_WORDS = 4
"""Of a process's command line, before its flags."""

OWN_SETTINGS = frozenset(("controller", "instance_id", "token_file"))
"""Settings of a worker that the launcher gives: where the controller is, and who the worker is. Here it proves that by
its role's certificate."""
_CONTROLLERS = {f.name: f for f in fields(ControllerConfig)}
_WORKERS = {f.name: f for f in fields(WorkerConfig) if f.name not in ("address", "client_address", *OWN_SETTINGS)}
COMMON_SETTINGS = [f for name, f in _CONTROLLERS.items() if name in _WORKERS]
CONTROLLER_SETTINGS = [f for name, f in _CONTROLLERS.items() if name not in _WORKERS]
WORKER_SETTINGS = [f for name, f in _WORKERS.items() if name not in _CONTROLLERS]
_TEXT_ENCODERS = {f.name: f for f in fields(TextEncoderConfig) if f.name not in ("address", "client_address")}
TEXT_ENCODER_SETTINGS = [f for name, f in _TEXT_ENCODERS.items() if name not in {**_CONTROLLERS, **_WORKERS}]
_SETTINGS = (*COMMON_SETTINGS, *CONTROLLER_SETTINGS, *WORKER_SETTINGS, *TEXT_ENCODER_SETTINGS)
SETTING_BY_NAME = {f.name: f for f in _SETTINGS}
"""What a fleet can be told, by name."""


@dataclass(frozen=True)
class RolePlan:
    """The workers of one role. What is empty or absent here is as in the fleet's settings."""

    count: int = 1
    device: str = ""
    dtype: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of `WorkerConfig`, among them the role's means."""


class FleetPlan:
    """A controller and its workers, as command lines."""

    def __init__(
        self,
        model: str,
        state: Path | str,
        roles: Mapping[str, RolePlan] | None = None,
        text_encoders: int = 0,
        **settings: Any,
    ) -> None:
        """`settings` are fields of `ControllerConfig` and `WorkerConfig`. Each process gets those that it has.
        `text_encoders` is 1 for a process that runs the text encoders of all encoders, with its own settings, too.

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
        if not 0 <= text_encoders <= 1:
            raise InvalidRequest("text_encoders", text_encoders, "0 or 1: one serves all encoders of a machine")
        if text_encoders and settings.get("text_encoder_engine"):
            accepted = "nothing beside text_encoders, which starts one"
            raise InvalidRequest("text_encoder_engine", settings["text_encoder_engine"], accepted)
        self.text_encoders = text_encoders
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

    @property
    def _threads(self) -> object:
        """Torch threads of each process with a model."""
        count = self.text_encoders + sum(plan.count for plan in self.roles.values())
        return self._settings.get("threads") or threads_default(count)

    def text_encoder(self) -> ProcessSpec:
        """The process that runs the text encoders of all encoders, on their device; it has their certificate."""
        role = "encoder"
        index = 1 + sum(plan.count for plan in self.roles.values())
        own = {"model": self.model, "device": self.device_of(role), "threads": self._threads}
        own |= {"address": "127.0.0.1:0", "dtype": self.roles[role].dtype or self._settings.get("dtype", "")}
        argv = self._argv(TEXT_ENCODER, _TEXT_ENCODERS, index, **own)
        return ProcessSpec(TEXT_ENCODER, argv, _environment(), keeps_address=True)

    def workers(self, controller_address: str, text_encoder_address: str = "") -> list[ProcessSpec]:
        """The workers' processes, in the order in which a job passes them."""
        specs: list[ProcessSpec] = []
        threads = self._threads
        engine = {"text_encoder_engine": f"process:{text_encoder_address}"} if text_encoder_address else {}
        for role in ROLE_NAMES:
            for name in self._names(role):
                own: dict[str, Any] = {
                    "threads": threads,
                    **self.roles[role].settings,
                    "model": self.model,
                    "controller": controller_address,
                    "device": self.device_of(role),
                    "dtype": self.roles[role].dtype or self._settings.get("dtype", ""),
                    **(engine if role == "encoder" else {}),
                }
                argv = self._argv(role, _WORKERS, len(specs) + 1, **own)
                specs.append(ProcessSpec(name, argv, _environment(), tells_end=True))
        return specs

    def drains(self) -> Iterator[tuple[list[str], float]]:
        """Groups of processes to drain one after the other, each with the seconds that it has once it is taken.

        Workers come in the order in which a job passes them, then the controller: one leaves when the rooms it holds
        are no longer needed, so those who read them must leave after it. The workers share the drain timeout.
        """
        least_s = self.config.lame_duck_s + STOP_MARGIN_S
        end_s = time.monotonic() + self.config.drain_timeout_s + least_s
        for role in ROLE_NAMES:
            yield self._names(role), max(end_s - time.monotonic(), least_s)
            if role == "encoder" and self.text_encoders:
                yield [TEXT_ENCODER], max(end_s - time.monotonic(), least_s)
        yield [CONTROLLER], least_s

    def _names(self, role: str) -> list[str]:
        return [f"{role}-{index}" for index in range(self.roles[role].count)]

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
        return str(Path(tls) / ("encoder" if service == TEXT_ENCODER else service)) if tls else ""


def check_model(model: str) -> None:
    """Raises InvalidRequest for a folder that isn't there: soon, and not when three processes have loaded torch."""
    if not model or not (is_hub_id(model) or Path(model).is_dir()):  # the path of no name is the current folder
        raise InvalidRequest("model", model, "a folder that exists, or a hub id like owner/name")


def threads_default(worker_count: int = len(ROLE_NAMES)) -> int:
    """Torch threads of one worker where all share this machine's cores; at least 1.

    Also what `--fused` takes, because the number of threads may change the last bits of a sum.
    """
    return max(1, len(os.sched_getaffinity(0)) // worker_count)


def _environment() -> dict[str, str]:
    # Idle OpenMP threads that spin take the cores from the other processes. A client's proof of who it is, in the same
    # shell, isn't the fleet's. A file in the current folder, types.py for example, is no module of the fleet: neither
    # for these processes (`-P`) nor for those that they start.
    proofs = {"TRIPTYCH_TLS": "", "TRIPTYCH_TOKEN_FILE": "", "TRIPTYCH_TOKEN": ""}
    return {"OMP_WAIT_POLICY": "PASSIVE", **proofs, "PYTHONSAFEPATH": "1", **module_path()}
