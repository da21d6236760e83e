"""The chart's list of flows against a running fleet: every connection is in the list, and every listed flow is seen.

Each process has a host of its own, and the first frame of each connection that crosses the hub says who opens it. Not
seen here: Envoy's (`make test-mesh`), PostgreSQL's (`make test-standby`), those to the hub and to a store, and the port
for clients without certificates.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import pytest
import yaml

from tests.chaos.network import HUB_ADDRESS, WORKER_PORT
from tests.fleet.processes import CONTROLLER, ROLES
from tests.hosts.hosts import Hosts, HostsFleet
from triptych.externalscaler import externalscaler_pb2 as pb
from triptych.externalscaler.externalscaler_pb2_grpc import ExternalScalerStub
from triptych.v1.encoder_service_pb2 import GenerateRequest
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych.v1.job_pb2 import GenerationRequest

LIST = Path(__file__).parents[2] / "deploy/helm/triptych/flows.yaml"
TABLE: dict[str, Any] = yaml.safe_load(LIST.read_text())
MOONCAKE = TABLE["ports"]["mooncake"]
METRICS = TABLE["ports"]["metrics"]["first"]
COLLECTOR = 4317
PORTS = {WORKER_PORT: "grpc", METRICS: "metrics", COLLECTOR: str(COLLECTOR)}
"""Names of ports; the fleet of these tests serves on another one than a cluster's."""
PORTS |= dict.fromkeys(range(MOONCAKE["first"], MOONCAKE["last"] + 1), "mooncake")
ELSEWHERE = {"postgresql", "hub", "store", "envoy"}
OUTSIDE = {"clients", "keda", "prometheus", "collector"}
"""All of them are the hub, where the tests stand."""
JOBS = 6
WAIT_S = 60.0
LISTEN = "0A"
SYN, ACK = 0x02, 0x10
ALL_FRAMES = 0x0003
"""ETH_P_ALL of linux/if_ether.h."""
RCVBUF_FORCE = 33
"""SO_RCVBUFFORCE of asm-generic/socket.h: no frame may be dropped."""
HEADERS_BYTES = 128
"""Ethernet, IP and TCP with all options have at most 14 + 60 + 60; the ports and flags come before these."""
Flow = tuple[str, str, str]
"""From, to, the port's name."""


class Seen(NamedTuple):
    """What a fleet did, whose rooms went by one mover."""

    mover: str
    flows: set[Flow]
    listening: set[tuple[str, str]]
    """Process and the port's name."""


class Wire:
    """Reads every frame that crosses the hub until its block ends, in a thread, and keeps who opens connections."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
        self._socket.setsockopt(socket.SOL_SOCKET, RCVBUF_FORCE, 64 * 2**20)
        self._socket.settimeout(0.1)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.opened: set[tuple[str, str, int]] = set()
        """From, to, port: addresses of IPv4."""

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._is_over.is_set():
            try:
                frame = self._socket.recv(HEADERS_BYTES)
            except TimeoutError:
                continue
            if (one := opening(frame)) is not None:
                self.opened.add(one)


def opening(frame: bytes) -> tuple[str, str, int] | None:
    """Who opens a connection to whom, if a frame is the first of one: TCP over IPv4 with SYN and without ACK."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    tcp = frame[14 + 4 * (frame[14] & 0x0F) :]
    if tcp[13] & (SYN | ACK) != SYN:
        return None
    return socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]), int.from_bytes(tcp[2:4], "big")


def listening(hosts: Hosts, names: Sequence[str]) -> set[tuple[str, str]]:
    """Each process and the names of the ports on which its host listens."""
    found = set()
    for name in names:
        command = [*hosts.prefix(name), "cat", "/proc/net/tcp", "/proc/net/tcp6"]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_S).stdout
        for words in map(str.split, out.splitlines()):
            if words[3] == LISTEN:
                port = int(words[1].rpartition(":")[2], 16)
                found.add((name.partition("-")[0], PORTS.get(port, str(port))))
    return found


def use(hosts: Hosts, fleet: HostsFleet) -> None:
    """As every outsider does."""
    with fleet.client() as client:
        for job_id in [client.create_job("a cat").job_id for _ in range(JOBS)]:
            for _ in client.watch_job(job_id):
                pass
    for name in fleet.processes:
        with urllib.request.urlopen(f"http://{hosts.ip(name)}:{METRICS}/metrics", timeout=WAIT_S) as page:
            page.read()
    with grpc.insecure_channel(fleet.addresses[CONTROLLER]) as channel:
        asked = pb.ScaledObjectRef(scalerMetadata={"role": "encoder"})
        ExternalScalerStub(channel).IsActive(asked, timeout=WAIT_S)
    with grpc.insecure_channel(fleet.addresses["encoder-0"]) as channel:
        request = GenerateRequest(request=GenerationRequest(prompt="a cat"))
        EncoderServiceStub(channel).Generate(request, timeout=WAIT_S)


@pytest.fixture(scope="module", params=["mooncake", "rpc"])
def seen(request: pytest.FixtureRequest, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    env = {
        "MC_FORCE_TCP": "1",  # between cards there are no TCP connections to see
        "MC_MIN_RPC_PORT": str(MOONCAKE["first"]),
        "MC_MAX_RPC_PORT": str(MOONCAKE["last"]),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "0.0.0.0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HUB_ADDRESS}:{COLLECTOR}",
    }
    every = ("--rings", "rpc", "--metrics-port", str(METRICS))
    flags = {f"{role}-0": (*every, "--mover", request.param) for role in ROLES} | {CONTROLLER: every}
    folder = tmp_path_factory.mktemp(request.param)
    fleet = HostsFleet(hosts, folder, hosts.ip, flags_by_name=flags, env=env)
    names = {hosts.ip(name): name.partition("-")[0] for name in flags} | {HUB_ADDRESS: "outside"}
    with socket.create_server((HUB_ADDRESS, COLLECTOR)) as collector, Wire() as wire, fleet:
        use(hosts, fleet)
        collector.settimeout(WAIT_S)
        for _ in flags:  # each process has spans to tell
            collector.accept()
        ports = listening(hosts, list(flags))
    found = {(names[source], names[target], PORTS.get(port, str(port))) for source, target, port in wire.opened}
    return Seen(request.param, found, ports)


def listed(mover: str) -> set[Flow]:
    """The list, as far as it can be seen here: rooms go by one mover."""
    found = set()
    for one in TABLE["flows"]:
        is_room = not {one["from"], one["to"]} & {CONTROLLER, *OUTSIDE}
        is_other = is_room and (one["port"] == "mooncake") != (mover == "mooncake")
        if ELSEWHERE.isdisjoint((one["from"], one["to"])) and one["port"] != "clients" and not is_other:
            source, target = ("outside" if name in OUTSIDE else name for name in (one["from"], one["to"]))
            found.add((source, target, str(one["port"])))
    return found


@pytest.mark.needs_mooncake
def test_connections_are_exactly_the_listed_flows(seen: Seen) -> None:
    assert seen.flows - listed(seen.mover) == set(), "they are in no list"
    assert listed(seen.mover) - seen.flows == set(), "nobody uses them"


@pytest.mark.needs_mooncake
def test_nobody_listens_on_another_port(seen: Seen) -> None:
    wanted = {(name, port) for name in (CONTROLLER, *ROLES) for port in ("grpc", "metrics")}
    wanted |= {(role, "mooncake") for role in ROLES if seen.mover == "mooncake"}
    assert seen.listening == wanted
