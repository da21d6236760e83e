"""The Python client of Triptych and the `triptych` command. Importing this imports no torch.

    from triptych_client import Client

    with Client("127.0.0.1:7070") as client:
        client.generate("a big red circle moving right", "out.mp4", seed=1)

Names are resolved on first use, so that the command starts without waiting for gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych_client.client import AsyncClient as AsyncClient
    from triptych_client.fleet_plan import FleetPlan as FleetPlan
    from triptych_client.fleet_plan import RolePlan as RolePlan
    from triptych_client.job_states import Generated as Generated
    from triptych_client.job_states import is_over as is_over
    from triptych_client.local_fleet import embedded_fleet as embedded_fleet
    from triptych_client.local_fleet import run_fleet as run_fleet
    from triptych_client.request import GenerationFields as GenerationFields
    from triptych_client.request import build_request as build_request
    from triptych_client.retry import RetryPolicy as RetryPolicy
    from triptych_client.sync import Client as Client

_MODULE_BY_NAME = {
    "AsyncClient": "client",
    "Client": "sync",
    "FleetPlan": "fleet_plan",
    "Generated": "job_states",
    "GenerationFields": "request",
    "RetryPolicy": "retry",
    "RolePlan": "fleet_plan",
    "build_request": "request",
    "embedded_fleet": "local_fleet",
    "is_over": "job_states",
    "run_fleet": "local_fleet",
}

__all__ = list(_MODULE_BY_NAME)


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_BY_NAME[name]}"), name)
