"""Two controllers over one journal, as processes: one is active, the other stands by."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fleet.processes import CONTROLLER, Fleet, wait_until

LEASE_S = 2.0
NAMES = (CONTROLLER, f"{CONTROLLER}-1")
WAIT_S = 60.0
ACTIVE_SERVICE = "triptych.v1.FleetService"
"""What the active controller alone says SERVING of."""


class Pair(Fleet):
    """Two controllers on ports of their own, and workers that know both."""

    def __init__(
        self, folder: Path, flags: Sequence[str], worker_flags: Sequence[str] = (), has_workers: bool = False
    ) -> None:
        """`flags` say where journal and results are."""
        lease = ("--lease-s", str(LEASE_S))
        fake = ("--fake-stage-seconds", "0.5", "--mover", "local", "--rings", "rpc")
        self.trace_file = folder.with_suffix(".spans")
        traced = ("--trace-file", str(self.trace_file))  # calls then pass interceptors, too
        controller_flags = (*flags, *lease, *traced)
        super().__init__(folder, "", controller_flags=controller_flags, worker_flags=(*fake, *traced, *worker_flags))
        if not has_workers:
            self.workers = []

    def __enter__(self) -> Pair:
        for name in NAMES:
            self.start(name)
        wait_until(self.active, WAIT_S, "one is active")
        self.endpoint = ",".join(self.addresses[name] for name in NAMES)
        for name in self.workers:
            self.spawn(name)
        for name in self.workers:
            self.wait_ready(name)
        return self

    def command(self, name: str) -> list[str]:
        """On the port that it had."""
        command = super().command(name)
        if name in NAMES:
            command[command.index("--address") + 1] = self.addresses.get(name, "127.0.0.1:0")
        return command

    def active(self) -> str:
        """The one that serves; empty where none does."""
        return next((name for name in NAMES if self.is_serving(name)), "")

    def other(self, name: str) -> str:
        """The other of the two."""
        return NAMES[1 - NAMES.index(name)]

    def is_serving(self, name: str, service: str = ACTIVE_SERVICE) -> bool:
        """What its health says, within a second."""
        with grpc.insecure_channel(self.addresses[name]) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=1.0)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def taken_over_s(self, end: Callable[[str], object]) -> float:
        """`end` the active controller; seconds until the other serves."""
        name = self.active()
        end(name)
        start_s = time.monotonic()
        wait_until(lambda: self.is_serving(self.other(name)), WAIT_S, "the other has taken over")
        return time.monotonic() - start_s

    def stop_still(self, name: str) -> None:
        """SIGSTOP."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self.processes[name].send_signal(signal.SIGCONT)
