"""A toy controller on a real port, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.clients.toy_controller import ToyController
from triptych import rpc
from triptych_client import AsyncClient, RetryPolicy

QUICK = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.2, total_s_max=60)


@pytest.fixture
async def controller() -> ToyController:
    return ToyController()


@pytest.fixture
async def server(controller: ToyController) -> AsyncIterator[rpc.Server]:
    server = await rpc.start_server("127.0.0.1:0", controller.services)
    yield server
    await server.stop(0)


@pytest.fixture
async def client(server: rpc.Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, QUICK) as client:
        yield client
