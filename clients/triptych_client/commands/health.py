"""`triptych health`: whether a process serves, for container runtimes and probes that can't speak mutual TLS."""

from __future__ import annotations

import argparse
import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych import addresses, environment, rpc
from triptych.errors import InvalidRequest, Unavailable, Unreachable
from triptych.security import auth
from triptych_client.commands.session import access, add_connection, run_async
from triptych_client.tables import show_line

HEALTH_TIMEOUT_S = 5.0
"""For one look. A process that takes longer to say a word is of no use now."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the service and the connection."""
    parser.add_argument(
        "--service", default="", metavar="NAME", help="for example triptych.v1.FleetService; default: the whole server"
    )
    add_connection(parser)


def run(args: argparse.Namespace) -> None:
    """Print what `grpc.health.v1` says; anything but SERVING is a failure."""
    show_line(run_async(_check(args)))


async def _check(args: argparse.Namespace) -> str:
    """`SERVING`. Raises Unavailable for another answer, Unreachable for none, InvalidRequest for no such service."""
    proof = access(args)
    security = auth.open_security(proof.tls, "", proof.token_file, proof.token)
    proxy = environment.proxy_for(addresses.parse("endpoint", args.endpoint).host, args.proxy)
    async with rpc.open_channel(args.endpoint, security, proxy) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=args.service), wait_for_ready=True)
        except TimeoutError as error:
            raise Unreachable(f"{args.endpoint} doesn't answer within {HEALTH_TIMEOUT_S:g} s") from error
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise InvalidRequest("service", args.service, f"a service of {args.endpoint}") from error
            raise Unreachable(f"{args.endpoint}: {error.details()}") from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"{args.endpoint} is {status}")
    return str(status)
