"""One way to start a server: with health, reflection, keepalive, and a port that is an error when taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from triptych import addresses, errors, telemetry
from triptych.rpc.call_durations import CallDurations
from triptych.rpc.edge import EdgeInterceptor, Gate, open_gate
from triptych.rpc.options import SERVER_OPTIONS
from triptych.rpc.reflection import add_reflection
from triptych.security import auth

Service = tuple[Callable[[Any, grpc.aio.Server], None], Any, str]
"""What a server serves: the generated `add_…_to_server`, the servicer, the full service name."""
WHOLE = ""
"""The name in `grpc.health.v1` of the server itself."""
ALIVE = "alive"
"""The name of the process: it answers, whether or not it takes work now. For liveness probes."""


class Server:
    """A running gRPC server, made by `start_server`."""

    def __init__(self, server: grpc.aio.Server, address: str, names: Sequence[str], client_address: str) -> None:
        self._server = server
        self._health = health.aio.HealthServicer()
        self.names = names
        self.address = address
        self.client_address = client_address
        """Empty where there is no second port."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def set_serving(self, serving: bool, names: Sequence[str] = ()) -> None:
        """Set what `grpc.health.v1` answers for the named services, or for `WHOLE` and all services; `ALIVE` stays."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in names or (WHOLE, *self.names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then cancel them. May be called again."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


async def start_server(
    address: str,
    services: Sequence[Service],
    *,
    not_serving: Sequence[str] = (),
    security: auth.Security = auth.OPEN,
    client_address: str = "",
    metrics: telemetry.Metrics | None = None,
    gate: Gate = open_gate,
) -> Server:
    """Start a server at `host:port` (port 0 takes a free one).

    Where `security` has certificates, `address` takes callers with a certificate only (mutual TLS); `client_address`
    is a second port, with TLS, for callers that have a token only. The services of `not_serving` begin as
    NOT_SERVING; `ALIVE` is SERVING. `metrics` measures each call, `gate` is asked before each answer. Raises
    InvalidRequest when an address can't be bound.
    """
    interceptors = [*telemetry.server_interceptors(), EdgeInterceptor(security, gate)]
    if metrics is not None and metrics.meter is not None:
        interceptors.insert(-1, CallDurations(metrics))
    server = grpc.aio.server(interceptors=interceptors, options=list(SERVER_OPTIONS))
    for add, servicer, _name in services:
        add(servicer, server)
    names = [name for _add, _servicer, name in services]
    certificates = security.certificates
    mutual = certificates.server_credentials(require_client=True) if certificates is not None else None
    bound = _bind(server, "address", address, mutual)
    client_bound = ""
    if client_address:
        if certificates is None or security.tokens is None:
            raise errors.InvalidRequest("client_address", client_address, "empty unless tls and tokens are set")
        one_sided = certificates.server_credentials(require_client=False)
        client_bound = _bind(server, "client_address", client_address, one_sided)
    result = Server(server, bound, names, client_bound)
    health_pb2_grpc.add_HealthServicer_to_server(result._health, server)
    add_reflection((*names, health.SERVICE_NAME), server)
    await result.set_serving(True, (ALIVE, WHOLE, *names))
    if not_serving:
        await result.set_serving(False, not_serving)
    await server.start()
    return result


def _bind(server: grpc.aio.Server, field: str, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Take a port; the address with its number. Raises InvalidRequest."""
    wanted = addresses.parse(field, address, to_serve=True)
    target = str(wanted)
    try:
        port = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise errors.InvalidRequest(field, address, "a free port on an address of this machine")
    return str(addresses.Address(wanted.host, port))
