"""The suite of all rings over RDMA: workers in two processes on two devices, and mixed with workers without RDMA."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.rdma.gateway import OWN_RANK, Gateway, Workers
from tests.rdma.harness import VerbsHarness
from tests.rings.conformance import RingConformance
from triptych.rings.verbs.card import open_card


class TestOneProcess(RingConformance):
    """Workers beside the controller, on both devices."""

    @pytest.fixture(autouse=True)
    async def _ways(self, harness: VerbsHarness, devices: tuple[str, str], bindings: list[str]) -> AsyncIterator[None]:
        cards = [open_card(device, bindings[-1]) for device in devices]
        (server,) = harness.ways
        assert isinstance(server, str)
        workers = [Workers(card, bytearray(8), OWN_RANK + number) for number, card in enumerate(cards)]
        for one in workers:
            await one.use(server)
        harness.ways[:], harness.host.others = workers, workers
        yield
        for one in workers:
            await one.close()
        for card in cards:
            card.close()


class TestTwoProcesses(RingConformance):
    """Workers in two processes on two devices."""

    @pytest.fixture(autouse=True)
    def _ways(self, harness: VerbsHarness, gateways: tuple[Gateway, Gateway]) -> None:
        (server,) = harness.ways
        assert isinstance(server, str)
        for gateway in gateways:
            gateway.use(server)
        harness.ways[:], harness.host.others = [gateway.address for gateway in gateways], gateways


class TestMixedWithRpc(RingConformance):
    """Workers in another process on the other device, and workers without RDMA."""

    @pytest.fixture(autouse=True)
    def _ways(self, harness: VerbsHarness, gateways: tuple[Gateway, Gateway]) -> None:
        (server,) = harness.ways
        assert isinstance(server, str)
        gateways[1].use(server)
        harness.ways.append(gateways[1].address)
        harness.host.others = gateways[1:]
