"""What commands share: running a coroutine that a signal cancels, flags of connections and roles, finding a job."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from triptych.config import ControllerConfig
from triptych.environment import ClientAccess, client_access
from triptych.errors import InvalidRequest, NotAllowed, NotFound
from triptych.means.options import DTYPES
from triptych.roles import ROLE_NAMES
from triptych_client import fleet_file
from triptych_client.client import AsyncClient
from triptych_client.fleet_file import FleetFile
from triptych_client.fleet_plan import RolePlan
from triptych_client.job_states import SHOWN_MAX, ambiguous
from triptych_client.retry import RetryPolicy

Result = TypeVar("Result")

PEOPLE = RetryPolicy(total_s_max=10.0, absent_s_max=2.0)
"""Somebody who looks at a fleet wants to know soon that it isn't there; a controller restarts in less than a second."""


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; SIGINT and SIGTERM cancel it and end in KeyboardInterrupt."""
    return asyncio.run(_with_sigterm(coroutine))


async def _with_sigterm(coroutine: Coroutine[Any, Any, Result]) -> Result:
    # asyncio.run turns SIGINT into a cancellation by itself; SIGTERM takes the same way.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    return await coroutine


def connect(args: argparse.Namespace) -> AsyncClient:
    """A client for a command that a person waits for, to be called in the loop that uses it."""
    return AsyncClient(args.endpoint, PEOPLE, access(args), args.proxy)


def access(args: argparse.Namespace) -> ClientAccess:
    """How the client proves who it is: by the flags, or else as the environment says."""
    found = client_access()
    return replace(found, tls=args.tls or found.tls, token_file=args.token_file or found.token_file)


def add_connection(parser: argparse.ArgumentParser, *, prints_json: bool = False) -> None:
    """Add the flags of `connect`; and `--json`."""
    parser.add_argument(
        "--endpoint", default=ControllerConfig.address, metavar="HOST:PORT", help="default: %(default)s"
    )
    add_access(parser)
    if prints_json:
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_access(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `access`, and `--proxy`."""
    group = parser.add_argument_group("proof of who calls (TRIPTYCH_TLS, TRIPTYCH_TOKEN_FILE, TRIPTYCH_TOKEN)")
    group.add_argument("--tls", default="", metavar="DIR", help="folder of ca.crt and, for a role, tls.crt and tls.key")
    group.add_argument("--token-file", default="", metavar="FILE", help="file that holds a token")
    parser.add_argument("--proxy", metavar="URL", help="HTTP proxy, never to this machine (default: TRIPTYCH_PROXY)")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add flags for the device and dtype of single roles, for `role_plans`."""
    group = parser.add_argument_group("roles that differ")
    for role in ROLE_NAMES:
        group.add_argument(f"--device-{role}", default="", metavar="DEVICE", help=f"device of the {role}")
        group.add_argument(f"--dtype-{role}", default="", choices=DTYPES, help=f"dtype of the {role}")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the fleet's file, for `fleet_of`."""
    parser.add_argument(
        "--fleet", default="", metavar="FILE", help="TOML file of the fleet; flags stand before it (docs/means.md)"
    )


def fleet_of(args: argparse.Namespace, settings: Mapping[str, Any], *, one_job: bool = False) -> FleetFile:
    """The fleet that file and flags ask for. `settings` are those that flags gave. Raises InvalidRequest.

    Flags of a role stand before the role's section, and flags of all before the sections that hold for all.
    """
    file = fleet_file.read(args.fleet)
    file = file.for_one_job() if one_job else file
    flags = vars(args)
    roles = {}
    for role, plan in file.roles.items():
        count = flags.get(f"{role}s")
        device, dtype = flags[f"device_{role}"], flags[f"dtype_{role}"]
        count = plan.count if count is None else count
        roles[role] = RolePlan(count, device or plan.device, dtype or plan.dtype, plan.settings)
    return FleetFile({**file.settings, **settings}, roles)


async def with_job(client: AsyncClient, wanted: str, call: Callable[[str], Awaitable[Result]]) -> Result:
    """Make a call about a job by its id, or by a beginning of it.

    The id is tried as it is first, because a caller who may cancel may not be allowed to list. Raises InvalidRequest
    for an empty id and for a beginning of several, NotFound, and what the call raises.
    """
    if not wanted.strip():
        raise InvalidRequest("job", wanted, "a job's id, or a beginning of it that no other has")
    try:
        return await call(wanted)
    except NotFound as error:
        try:
            found = [job.job_id async for job in client.list_jobs(page_size=SHOWN_MAX + 1, job_id_prefix=wanted)]
        except NotAllowed:
            raise error from None
        if not found or found == [wanted]:  # where it is there, something else wasn't
            raise
        if len(found) > 1:
            raise ambiguous(wanted, found) from None
    return await call(found[0])
