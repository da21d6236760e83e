"""`triptych status` says which ways queues and tensors go, and why."""

from __future__ import annotations

import pytest

from tests.clients.test_cli import triptych
from tests.fleet.processes import Fleet, wait_until
from triptych import rdma_devices


@pytest.mark.needs_mooncake
def test_a_fleet_says_what_is_in_use_and_why(wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        wait_until(lambda: all(w.status.rings.name for w in client.get_fleet().workers), 60, "the first reports are in")
        fleet = client.get_fleet()
    has_device = bool(rdma_devices.ports())
    expected = ("verbs", "verbs", "rdma") if has_device else ("memory", "rpc", "tcp")
    ways = {(ring.driver, bool(ring.driver_reason)) for ring in fleet.rings}
    assert ways == {(expected[0], True)}
    for worker in fleet.workers:
        assert (worker.status.rings.name, worker.info.mooncake.name) == expected[1:]
        assert worker.status.rings.reason
        assert worker.info.mooncake.reason
    shown = triptych("status", "--once", "--endpoint", wan_fleet.endpoint).stdout
    rows = [line.split("\t")[:3] for line in shown.splitlines()]
    for row in (["rings", expected[0]], ["claims", expected[1]], ["Mooncake", expected[2]]):
        assert ["ways", *row] in rows
    if not has_device:
        assert shown.count("this machine has no RDMA device") == 3
