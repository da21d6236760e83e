"""A fleet on a Ray cluster: each process has an actor that keeps it running on the node where Ray puts it.

Ray places the actors by their resources, and starts those of a node that died on another one. Everything else is as on
one machine: jobs go through the controller, tensors from worker to worker. The controller stays on the node where the
fleet is started from, because its state is a folder there.

Every node needs this installation and the model under the same paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych import addresses
from triptych.errors import FAILURE_CHARS_MAX, InvalidRequest, MissingExtra, TriptychError, Unavailable
from triptych_client.fleet_plan import STOP_MARGIN_S, FleetPlan
from triptych_client.launcher import Notice, Supervisor
from triptych_client.processes import ProcessSpec

WORKER_CPUS = 1
"""What a worker asks Ray for. Its threads are a setting of its own."""
OWN_CARD = ("cuda", "cuda:0")
"""Ray shows a worker one card, whichever it is, as the first."""

Failure = tuple[bool, str]
"""Why a process can't be kept running: whether its configuration is refused, and the sentence."""


class Keeper:
    """An actor: one process, on the node where the actor is. All methods belong to its event loop."""

    def __init__(self, spec: ProcessSpec, current_folder: str, log_folder: str) -> None:
        os.chdir(current_folder)  # paths of the settings may be relative
        self._spec = spec
        self._log_folder = Path(log_folder)
        self._supervisor: Supervisor | None = None

    async def serve(self) -> Failure | None:
        """Keep the process running until `stop`; what ended it otherwise. Ray calls this again on another node."""
        try:
            await self._kept().wait()
        except TriptychError as error:
            return isinstance(error, InvalidRequest), str(error)
        return None

    async def address(self, timeout_s: float) -> str:
        """Where the process serves; empty where it can't, and `serve` says why."""
        try:
            return await self._kept().ready(self._spec.name, timeout_s)
        except TriptychError:
            return ""

    async def stop(self, timeout_s: float) -> None:
        """Drain the process."""
        await self._kept().stop([self._spec.name], timeout_s)

    def _kept(self) -> Supervisor:
        if self._supervisor is None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            self._supervisor = Supervisor(self._log_folder, notice=functools.partial(print, flush=True))
            self._supervisor.start(_served_here(self._spec))
        return self._supervisor


def _served_here(spec: ProcessSpec) -> ProcessSpec:
    """A process that serves at the address of this node. The last of two flags counts."""
    import ray

    port = 0
    if "--address" in spec.argv:
        asked = spec.argv[len(spec.argv) - list(reversed(spec.argv)).index("--address")]
        port = addresses.parse("address", asked, to_serve=True).port
    address = addresses.Address(str(ray.util.get_node_ip_address()), port)
    return replace(spec, argv=(*spec.argv, "--address", str(address)))


class RayFleet:
    """A plan, running on a cluster. As `local_fleet.Fleet`."""

    def __init__(self, plan: FleetPlan, address: str, notice: Notice) -> None:
        """`address` is that of the cluster; empty for the one that this machine is a node of."""
        self._ray = _import_ray()
        self.plan = plan
        self.endpoint = ""
        self._address = address
        self._notice = notice
        self._keepers: dict[str, Any] = {}
        self._ends: dict[str, asyncio.Future[Failure | None]] = {}

    async def start(self) -> None:
        """Start the controller, then all workers, and wait until all serve. Raises InvalidRequest and Unavailable."""
        self._join()
        here = self._ray.get_runtime_context().get_node_id()
        pinned = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        controller = self.plan.controller()
        self._keep(controller, num_cpus=0, scheduling_strategy=pinned)
        self.endpoint = await self._ready(controller.name)
        specs = self.plan.workers(self.endpoint)
        for spec in specs:
            cards = _cards(self.plan.device_of(_role_of(spec)))
            self._keep(spec, num_cpus=WORKER_CPUS, num_gpus=cards, scheduling_strategy="SPREAD")
        self._notice(f"waiting for {', '.join(spec.name for spec in specs)}, which load {self.plan.model}")
        await asyncio.gather(*(self._ready(spec.name) for spec in specs))

    async def wait(self) -> None:
        """Wait until a process can't be kept running, and raise why."""
        done, _pending = await asyncio.wait(self._ends.values(), return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            _raise_failure(end.result())

    async def stop(self) -> None:
        """Drain the workers in the order in which a job passes them, then the controller."""
        for names, timeout_s in self.plan.drains():
            drained = [self._keepers[name].stop.remote(timeout_s) for name in names if name in self._keepers]
            with contextlib.suppress(TimeoutError):  # an actor that waits for a node has nothing to drain
                await asyncio.wait_for(asyncio.gather(*drained, return_exceptions=True), timeout_s + STOP_MARGIN_S)

    async def kill(self) -> None:
        """End all processes without a drain."""
        self.kill_now()

    def kill_now(self) -> None:
        """Leave the cluster, which ends the actors of those that leave, and each process dies with its actor."""
        self._keepers.clear()
        for end in self._ends.values():
            end.cancel()
        self._ray.shutdown()

    def _join(self) -> None:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=self._address or "auto", logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            accepted = f"the address of a Ray cluster that runs ({' '.join(str(error).split())})"
            raise InvalidRequest("ray_address", self._address, accepted) from error
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends this process without a drain

    def _keep(self, spec: ProcessSpec, **options: Any) -> None:
        actor = self._ray.remote(Keeper).options(max_restarts=-1, max_task_retries=-1, **options)
        keeper = actor.remote(spec, os.getcwd(), str(self.plan.log_folder.absolute()))
        self._keepers[spec.name] = keeper
        self._ends[spec.name] = asyncio.ensure_future(self._result(keeper.serve.remote()))

    async def _result(self, reference: Awaitable[Any]) -> Any:
        """An actor's answer. Raises Unavailable where Ray can't keep the actor."""
        try:
            return await reference
        except self._ray.exceptions.RayError as error:
            raise Unavailable(f"Ray: {' '.join(str(error).split())[:FAILURE_CHARS_MAX]}") from error

    async def _ready(self, name: str) -> str:
        timeout_s = self.plan.start_timeout_s
        announced = asyncio.ensure_future(self._result(self._keepers[name].address.remote(timeout_s)))
        end = self._ends[name]
        await asyncio.wait((announced, end), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if announced.done() and (address := announced.result()):
            self._notice(f"{name} serves on {address}")
            return str(address)
        announced.cancel()
        await asyncio.wait((end,), timeout=STOP_MARGIN_S)
        if end.done():
            _raise_failure(end.result())
        raise Unavailable(f"{name} was not ready after {timeout_s:g} s; does the cluster have a free node for it?")


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingExtra("ray", "ray", "a fleet on a Ray cluster") from error
    return ray


def _role_of(spec: ProcessSpec) -> str:
    return spec.name.rpartition("-")[0]


def _cards(device: str) -> int:
    """Cards that a worker asks for. Raises InvalidRequest for a device that Ray can't give."""
    if device in ("", "cpu"):
        return 0
    if device not in OWN_CARD:
        raise InvalidRequest("device", device, "cpu, cuda or cuda:0: Ray gives each worker a card of its own")
    return 1


def _raise_failure(failure: Failure | None) -> None:
    if failure is not None:
        is_configuration, sentence = failure
        raise InvalidRequest.from_message(sentence) if is_configuration else Unavailable(sentence)
