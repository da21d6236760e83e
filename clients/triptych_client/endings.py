"""How a process ended: in words, and told to the controller, so that its job needn't wait for silence to tell it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import grpc

from triptych import rpc
from triptych.errors import DeadlinePassed, JournalFull, TriptychError, Unavailable
from triptych.rpc.backoff import Backoff
from triptych.security import auth
from triptych.v1.fleet_service_pb2 import UnregisterWorkerRequest
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub

log = logging.getLogger(__name__)

TELL_S = 30.0
"""How long to try: a controller that was killed beside its worker is back by then. Later, silence has told it."""
CALL_S = 5.0
_VMSTAT = Path("/proc/vmstat")
_COUNTER = "oom_kill "


def ran_out_of_memory() -> int:
    """How often this machine's kernel has killed a process because memory ran out, in a container or in all; 0 where
    it doesn't say."""
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            if line.startswith(_COUNTER):
                return int(line.removeprefix(_COUNTER))
    return 0


def ending(code: int, out_of_memory_before: int) -> str:
    """How a process ended, by its exit code (negative for a signal): `killed by signal 9 (SIGKILL)`.

    `out_of_memory_before` is what `ran_out_of_memory` said when it started.
    """
    if code >= 0:
        return f"exit code {code}"
    number = -code
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        name = ""
    is_likely = number == signal.SIGKILL and ran_out_of_memory() > out_of_memory_before
    return f"signal {number}{name}" + (": the kernel has killed a process because memory ran out" if is_likely else "")


async def tell(endpoint: str, tls: str, instance_id: str, how: str) -> None:
    """Tell the controller that a worker's process has ended; `tls` is the folder of that worker's certificate.

    What the controller refuses, or doesn't hear within `TELL_S`, is logged: silence tells it then.
    """
    verb = "was ended by" if how.startswith("signal") else "ended with"
    request = UnregisterWorkerRequest(instance_id=instance_id, ended=f"{verb} {how}")
    try:
        async with asyncio.timeout(TELL_S), rpc.open_channel(endpoint, auth.open_security(tls, "")) as channel:
            await _tell_until_heard(channel, request)
    except (TriptychError, TimeoutError) as error:
        log.warning("the controller was not told that a worker %s: %s", request.ended, error or "no answer")


async def _tell_until_heard(channel: grpc.aio.Channel, request: UnregisterWorkerRequest) -> None:
    stub = FleetServiceStub(channel)
    backoff = Backoff()
    while True:
        try:
            await rpc.translate(stub.UnregisterWorker(request, timeout=CALL_S))
            return
        except (Unavailable, DeadlinePassed, JournalFull):
            await asyncio.sleep(backoff.next_s())
