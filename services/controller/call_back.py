"""Calls a worker back at the address that it tells others, before it becomes a member.

Other workers fetch its rooms there. What can't be reached would otherwise show when a job waits for its tensors.

| the controller finds | the worker |
| --- | --- |
| the instance that registers | is taken |
| a worker of a version that can't confirm which instance it is | is taken: it was reached |
| no such name, a refused connection, another process, a certificate that isn't for that name | ends with a sentence |
| no answer, no way there for now, or any other error | says so and asks again: a firewall may open, a network heal |
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket

from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from triptych import addresses, ids, rpc
from triptych.addresses import Address
from triptych.errors import InvalidRequest, NoSuchMethod, NotFound, TriptychError, Unavailable, Unreachable
from triptych.security import auth
from triptych.v1 import worker_service_pb2
from triptych.v1.fleet_service_pb2 import RegisterWorkerRequest
from triptych.v1.worker_service_pb2 import ConfirmInstanceRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub

from .journal import Journal

log = logging.getLogger(__name__)

CALL_BACK_TIMEOUT_S = 10.0
"""Bound of a call back. A worker that registers first has nothing else to do; its own bound is three times as long."""
SAID_CHARS_MAX = 200
"""Longest piece of what the other side or gRPC says: the whole sentence must fit into a status."""
ANOTHER = "another process than this worker"
_SERVICE = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
_VERIFICATION = re.compile("CERTIFICATE_VERIFY_FAILED|Hostname Verification", re.IGNORECASE)
"""What gRPC says where the other side's certificate is no good for the address. Other failures of TLS may
pass: a reset, a worker that is just starting."""


class CallBack:
    """Refuses a worker that doesn't answer at its address."""

    def __init__(
        self, journal: Journal, security: auth.Security, answer_timeout_s: float = CALL_BACK_TIMEOUT_S
    ) -> None:
        """`security` is the controller's own."""
        self._journal = journal
        self._answer_timeout_s = answer_timeout_s
        self._security = security.among_peers

    async def __call__(self, request: RegisterWorkerRequest) -> None:
        """Return when the worker answers at its address. Raises InvalidRequest where it never will, else Unreachable.

        One that the journal knows was reached when it came: a restarted controller doesn't wait for each once more.
        """
        if await self._journal.known_rank(request.instance_id):
            return
        address = addresses.parse("address", request.info.address)
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                await _connect(address)
                await self._confirm(address, request.instance_id)
        except TimeoutError:
            error: TriptychError = _silent(address, f"no answer within {self._answer_timeout_s:g} s")
        except (InvalidRequest, Unreachable) as refusal:
            error = refusal
        else:
            return
        log.warning("refused a worker: %s", error)
        raise error

    async def _confirm(self, address: Address, instance_id: str) -> None:
        async with rpc.open_channel(str(address), self._security) as channel:
            confirmation = ConfirmInstanceRequest(instance_sha256=ids.instance_sha256(instance_id))
            try:
                try:
                    await rpc.translate(WorkerServiceStub(channel).ConfirmInstance(confirmation))
                except NoSuchMethod:  # an older worker, or no worker at all: that one doesn't know the service
                    await rpc.translate(HealthStub(channel).Check(HealthCheckRequest(service=_SERVICE)))
            except (NotFound, NoSuchMethod) as error:
                raise _refusal(address, ANOTHER) from error
            except Unavailable as error:
                said = _short(str(error).rpartition("last error: ")[2])
                if _VERIFICATION.search(str(error)):
                    raise _refusal(address, f"a server with which TLS fails ({said})") from error
                raise _silent(address, said) from error
            except TriptychError as error:
                raise Unreachable(str(_refusal(address, f"a server that says: {_short(str(error))}"))) from error


async def _connect(address: Address) -> None:
    """Open a connection and close it: the system's errors say more than gRPC's."""
    try:
        _reader, writer = await asyncio.open_connection(address.host, address.port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _silent(address, f"no address of that name for now ({error.strerror})") from error
        raise _refusal(address, f"no address of that name ({error.strerror})") from error
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            raise _refusal(address, "nothing that listens") from error
        raise _silent(address, f"no way there ({error.strerror or error})") from error
    writer.close()


def _short(said: str) -> str:
    return " ".join(said.split())[:SAID_CHARS_MAX]


def _refusal(address: Address, found: str) -> InvalidRequest:
    accepted = "this worker's name or address as the controller and the other workers reach it"
    return InvalidRequest("advertise_host", address.host, f"{accepted}; at {address} the controller found {found}")


def _silent(address: Address, found: str) -> Unreachable:
    return Unreachable(f"{_refusal(address, found)}: let the controller and the other workers through to that port")
