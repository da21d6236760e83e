"""Hosts that are reached by IPv6, by their names, and by certificates for either."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.network import WORKER_PORT
from tests.hosts.hosts import HOSTS, Hosts, HostsFleet
from tests.hosts.test_movers import fake_job, found
from triptych_client import authority

SIDE = 256
pytestmark = pytest.mark.needs_mooncake


def movers_of_a_job(fleet: HostsFleet, folder: Path) -> Counter[str]:
    """What carried the rooms of one job."""
    with fleet.client() as client:
        job = fake_job(client, folder, seed=1, side=SIDE)
    (hand_off,) = found(fleet, [job])
    return hand_off.movers


@pytest.mark.parametrize(("mover", "carried"), [("", "mooncake/tcp"), ("rpc", "rpc/grpc")], ids=["auto", "rpc"])
def test_ipv6_with_certificates(hosts: Hosts, tmp_path: Path, mover: str, carried: str) -> None:
    authority.init(tmp_path / "certs", [hosts.ip_6(name) for name in HOSTS])
    flags = {name: ("--mover", mover) if mover and name != "controller" else () for name in HOSTS}
    with HostsFleet(hosts, tmp_path / "fleet", hosts.ip_6, tls=tmp_path / "certs", flags_by_name=flags) as fleet:
        assert fleet.addresses["encoder-0"] == f"[{hosts.ip_6('encoder-0')}]:{WORKER_PORT}"
        assert set(movers_of_a_job(fleet, tmp_path)) == {carried}


@pytest.mark.parametrize("name_of", [str, "{}-6".format], ids=["ipv4", "ipv6"])
def test_names_with_certificates(hosts: Hosts, tmp_path: Path, name_of: Callable[[str], str]) -> None:
    authority.init(tmp_path / "certs", [name_of(name) for name in HOSTS])
    with HostsFleet(hosts, tmp_path / "fleet", name_of, tls=tmp_path / "certs") as fleet:
        assert fleet.addresses["encoder-0"] == f"{name_of('encoder-0')}:{WORKER_PORT}"
        assert set(movers_of_a_job(fleet, tmp_path)) == {"mooncake/tcp"}


def test_what_mooncake_cannot_reach_goes_by_rpc(hosts: Hosts, tmp_path: Path) -> None:
    """The encoder's Mooncake has IPv6 only, the others' have IPv4."""

    def at(name: str) -> str:
        return hosts.ip_6(name) if name == "encoder-0" else hosts.ip(name)

    with HostsFleet(hosts, tmp_path / "fleet", at) as fleet:
        assert movers_of_a_job(fleet, tmp_path) == {"rpc/grpc": 1, "mooncake/tcp": 1}


def test_what_a_firewall_keeps_from_mooncake_goes_by_rpc(hosts: Hosts, tmp_path: Path) -> None:
    """Mooncake takes 5 s to find out, once."""
    with HostsFleet(hosts, tmp_path / "fleet", hosts.ip) as fleet:
        asyncio.run(hosts.shut("encoder-0", but=[WORKER_PORT]))
        try:
            for _job in range(3):
                assert movers_of_a_job(fleet, tmp_path) == {"rpc/grpc": 1, "mooncake/tcp": 1}
        finally:
            asyncio.run(hosts.unshut("encoder-0"))
    assert fleet.log("transformer-0").count("mooncake is the last choice for rooms of rank") == 1
    assert fleet.log("transformer-0").count("SocketHandShakePlugin: connect()") == 1
