"""A worker that others can't reach is refused when it registers, and says why before it ends or asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import WORKER_PORT
from tests.fleet.processes import wait_until
from tests.hosts.hosts import HOSTS, Hosts, HostsFleet
from tests.hosts.test_movers import fake_job
from triptych.errors import EXIT_CONFIGURATION
from triptych_client import authority

WORKER = "encoder-0"
REFUSAL_TIMEOUT_S = 60.0
"""A call back is given up after 10 s."""
FOUND = "accepted: this worker's name or address as the controller and the other workers reach it; at"
UNREACHABLE = {
    "loopback": ("127.0.0.1", "the controller found nothing that listens"),
    "IPv6 loopback": ("::1", "the controller found nothing that listens"),
    "loopback, where the controller itself answers": ("127.0.0.1", "the controller found another process than this"),
    "another host's": ("transformer-0", "the controller found nothing that listens"),
    "a name that doesn't resolve": ("nowhere", "the controller found no address of that name"),
}


def refused(fleet: HostsFleet, name: str = WORKER) -> str:
    """The last line of a worker that is started now, which ends with it."""
    fleet.spawn(name)
    process = fleet.processes.pop(name)
    try:
        assert process.wait(REFUSAL_TIMEOUT_S) == EXIT_CONFIGURATION, fleet.log(name)
    finally:
        process.kill()
        process.communicate()
    return fleet.log(name).splitlines()[-1]


@pytest.fixture
def controller(hosts: Hosts, tmp_path: Path) -> Iterator[HostsFleet]:
    """A controller that listens on all its host's addresses, and no worker."""
    fleet = HostsFleet(hosts, tmp_path / "fleet", hosts.ip, counts={"encoder": 0, "transformer": 0, "decoder": 0})
    reached_at = fleet.endpoint
    fleet.endpoint = f"0.0.0.0:{WORKER_PORT}"
    with fleet:
        fleet.endpoint = reached_at
        yield fleet


@pytest.mark.parametrize(("advertised", "found"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_an_address_that_leads_elsewhere(controller: HostsFleet, hosts: Hosts, advertised: str, found: str) -> None:
    port = WORKER_PORT if "another process" in found else WORKER_PORT + 1
    controller.flags_by_name = {
        WORKER: ("--address", f"0.0.0.0:{port}", "--advertise-host", advertised, "--fake-stage-seconds", "0.1")
    }
    sentence = refused(controller)
    assert sentence.startswith(f"error: advertise_host is {advertised!r}; {FOUND}"), sentence
    assert found in sentence


def test_a_certificate_for_another_name(hosts: Hosts, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    authority.init(certs, [name for name in HOSTS if name != WORKER])
    fleet = HostsFleet(hosts, tmp_path / "fleet", str, tls=certs, counts={"encoder": 0})
    with fleet:
        sentence = refused(fleet)
    assert sentence.startswith(f"error: advertise_host is {WORKER!r}; {FOUND} {WORKER}:{WORKER_PORT}"), sentence
    assert "the controller found a server with which TLS fails" in sentence


def test_a_port_behind_a_firewall(hosts: Hosts, tmp_path: Path) -> None:
    """The worker says so, asks again, and is taken when the firewall opens."""
    with HostsFleet(hosts, tmp_path / "fleet", hosts.ip, counts={"encoder": 0}) as fleet:
        asyncio.run(hosts.drop_from(WORKER, WORKER_PORT))
        try:
            fleet.spawn(WORKER)
            sentence = "let the controller and the other workers through to that port"
            wait_until(lambda: sentence in fleet.log(WORKER), REFUSAL_TIMEOUT_S, "the worker says why it is refused")
            assert f"advertise_host is '{hosts.ip(WORKER)}'; {FOUND}" in fleet.log(WORKER)
            with fleet.client() as client:
                assert len(client.get_fleet().workers) == 2
        finally:
            asyncio.run(hosts.unshut(WORKER))
        fleet.wait_ready(WORKER)
        with fleet.client() as client:
            fake_job(client, tmp_path, seed=1, side=64)
