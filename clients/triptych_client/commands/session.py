"""What commands share: running a coroutine that a signal cancels, and the fleet's flags."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from triptych.config import ClientAccess, client_access
from triptych_client.client import AsyncClient
from triptych_client.fleet import ROLES, RolePlan
from triptych_client.retry import RetryPolicy

Result = TypeVar("Result")

PEOPLE = RetryPolicy(total_s_max=10.0)
"""Somebody who looks at a fleet wants to know soon that it isn't there."""


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; SIGINT and SIGTERM cancel it and end in KeyboardInterrupt."""
    return asyncio.run(_with_sigterm(coroutine))


async def _with_sigterm(coroutine: Coroutine[Any, Any, Result]) -> Result:
    # asyncio.run turns SIGINT into a cancellation by itself; SIGTERM takes the same way.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    return await coroutine


@contextlib.asynccontextmanager
async def connect(args: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client for a command that a person waits for."""
    async with AsyncClient(args.endpoint, PEOPLE, access(args)) as client:
        yield client


def access(args: argparse.Namespace) -> ClientAccess:
    """How the client proves who it is: by the flags, or else as the environment says."""
    found = client_access()
    return replace(found, tls=args.tls or found.tls, token_file=args.token_file or found.token_file)


def fleet_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `FleetPlan` that `up` and `generate` have in common."""
    return {
        "revision": args.revision,
        "threads": args.threads,
        "mover": args.mover,
        "mooncake": args.mooncake,
        "rings": args.rings,
        "rdma_device": args.rdma_device,
        "arena_bytes": args.arena_bytes,
        "trace_file": args.trace_file,
        "roles": {role: role_plan(args, role) for role in ROLES},
    }


def role_plan(args: argparse.Namespace, role: str) -> RolePlan:
    """Count, device and dtype of a role."""
    flags = vars(args)
    return RolePlan(
        count=flags.get(f"{role}s", 1),
        device=flags[f"device_{role}"] or args.device,
        dtype=flags[f"dtype_{role}"] or args.dtype,
    )
