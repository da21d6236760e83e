"""The Python client of Triptych and the `triptych` command. Importing this imports no torch.

    from triptych_client import Client

    with Client("127.0.0.1:7070") as client:
        client.generate("a big red circle moving right", "out.mp4", seed=1)
"""

from __future__ import annotations

from triptych_client.client import AsyncClient
from triptych_client.jobs import ACTIVE_STATES, Generated, is_over
from triptych_client.request import GenerationFields, build_request
from triptych_client.retry import RetryPolicy
from triptych_client.sync import Client

__all__ = [
    "ACTIVE_STATES",
    "AsyncClient",
    "Client",
    "Generated",
    "GenerationFields",
    "RetryPolicy",
    "build_request",
    "is_over",
]
