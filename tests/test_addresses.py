"""Addresses, proxies and durations: what isn't one is refused in one sentence wherever it is given."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import addresses
from triptych.config import ControllerConfig, WorkerConfig, load
from triptych.environment import metrics_host
from triptych.errors import InvalidRequest
from triptych_client import Client, RetryPolicy
from triptych_client.fleet_plan import FleetPlan, RolePlan
from triptych_client.request import build_request

LABELS = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.replace(".", "").isdigit())
HOSTS = NAMES | st.ip_addresses().map(str)
BAD = [
    *(
        "",
        "7070",
        "node",
        "node:",
        ":7070",
        "node:port",
        "node:-1",
        "node:99999",
        "node:65536",
        "node: 7070",
        "node:７０７０",
    ),
    *("http://node:7070", "https://node:7070/", "dns:///node:7070", "unix:/tmp/x", "unix:7070/x", "user@node:7070"),
    *(
        "::1:7070",
        "::1",
        "[::1]",
        "[node]:7070",
        "[::1:7070",
        "no de:7070",
        "-node:7070",
        "a..b:7070",
        "256.1.1.1:7070",
    ),
    *("1.2.3:7070", "node:7070:7071", "node:7070/path", "ünode:7070", "node:7070\n", "\x00:7070", f"{'a' * 64}:7070"),
]


@given(host=HOSTS, port=st.integers(1, 65_535))
def test_a_host_and_a_port_are_taken_as_they_are(host: str, port: int) -> None:
    text = str(addresses.Address(host, port))
    assert addresses.parse("x", text) == addresses.Address(host, port)
    assert text.rpartition(":")[2] == str(port)


@given(st.text(max_size=40) | st.sampled_from(BAD))
def test_whatever_is_taken_is_what_was_written(text: str) -> None:
    """No port becomes another, no part of a host falls away."""
    try:
        found = addresses.parse("x", text, to_serve=True)
    except InvalidRequest:
        return
    assert 0 <= found.port <= 65_535
    host, _, port = text.rpartition(":")
    assert (host.strip("[]"), int(port)) == (found.host, found.port)


@pytest.mark.parametrize("text", BAD)
def test_an_address_that_is_none_is_refused_wherever_it_is_given(text: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    givers: dict[str, Callable[[], object]] = {
        "endpoint": lambda: Client(text),
        "address": lambda: FleetPlan(str(tmp_path / "model"), tmp_path, address=text or "x"),
        "client_address": lambda: load(ControllerConfig, [], {"TRIPTYCH_CLIENT_ADDRESS": text or "x"}),
        "controller": lambda: load(WorkerConfig, [f"--controller={text or 'x'}"], {}),
    }
    for field, give in givers.items():
        with pytest.raises(InvalidRequest, match="accepted: host:port without a scheme") as caught:
            give()
        assert str(caught.value).startswith(f"{field} is "), field
        assert "\n" not in str(caught.value)


def test_port_0_is_for_servers_only() -> None:
    assert load(ControllerConfig, ["--address", "[::1]:0"], {}).address == "[::1]:0"
    with pytest.raises(InvalidRequest, match=r"endpoint is '127\.0\.0\.1:0'"):
        Client("127.0.0.1:0")


@pytest.mark.parametrize(
    ("flags", "host"),
    [
        (("--address", "10.0.0.7:0"), "10.0.0.7"),
        (("--address", "[::1]:0"), "[::1]"),
        (("--address", "0.0.0.0:0", "--advertise-host", "node-1"), "node-1"),
        (("--address", "[::]:0", "--advertise-host", "fd00::7"), "[fd00::7]"),
    ],
)
def test_a_worker_tells_others_where_it_is(flags: tuple[str, ...], host: str) -> None:
    assert load(WorkerConfig, flags, {}).host == host


@pytest.mark.parametrize("flags", [("--address", "0.0.0.0:0"), ("--address", "[::]:0")])
def test_a_worker_does_not_tell_others_that_it_is_everywhere(flags: tuple[str, ...]) -> None:
    """They would ask themselves for its rooms."""
    with pytest.raises(InvalidRequest, match="advertise_host is ''"):
        load(WorkerConfig, flags, {})


@pytest.mark.parametrize("host", ["node:7070", "http://node", "[node]", "", "a b"])
def test_an_advertised_host_has_no_port(host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"advertise_host is .* without a port"):
        addresses.parse_host("advertise_host", host)


@given(st.ip_addresses(v=4))
def test_loopback_is_127_and_its_like(address: ipaddress.IPv4Address) -> None:
    assert addresses.is_loopback(str(address)) is (address.packed[0] == 127 or int(address) == 0)
    assert addresses.is_loopback(f"::ffff:{address}") is addresses.is_loopback(str(address))


def test_loopback_by_name() -> None:
    assert all(map(addresses.is_loopback, ("localhost", "LOCALHOST", "localhost.", "::1", "::")))
    assert not any(map(addresses.is_loopback, ("localhost.example", "node", "fd00::1", "10.0.0.1")))


@pytest.mark.parametrize(
    "url",
    ["proxy:3128", "https://proxy:3128", "socks5://proxy:1", "http://u:secret@proxy", "http://proxy:0", "http://["],
)
def test_a_proxy_that_gRPC_would_pass_over_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="proxy is 'something else'; accepted: http://") as caught:
        addresses.parse_proxy("proxy", url)
    assert "secret" not in str(caught.value)


def test_a_proxy_is_shown_without_its_password() -> None:
    found = addresses.parse_proxy("proxy", "http://user:secret@proxy:3128/")
    assert found is not None
    assert (str(found), found.url) == ("http://proxy:3128", "http://user:secret@proxy:3128")
    assert addresses.parse_proxy("proxy", "") is None


def test_who_is_named_by_no_proxy() -> None:
    listed = "example.org, .local,10.0.0.0/8"
    assert all(addresses.is_exempt(host, listed) for host in ("example.org", "a.example.org", "A.LOCAL", "10.1.2.3"))
    assert not any(addresses.is_exempt(host, listed) for host in ("example.com", "11.0.0.1", "local"))
    assert not addresses.is_exempt("node", "")


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e12])
async def test_a_duration_that_gRPC_would_take_for_another_is_refused(seconds: float) -> None:
    from triptych_client import AsyncClient

    with pytest.raises(InvalidRequest, match="total_s_max is "):
        RetryPolicy(total_s_max=seconds)
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest, match="timeout_s is "):
            _ = [update async for update in client.watch_job("x", timeout_s=seconds)]


@pytest.mark.parametrize("deadline", [timedelta.max, datetime.max.replace(tzinfo=timezone(timedelta(hours=-9)))])
def test_a_deadline_beyond_all_calendars_is_refused(deadline: datetime | timedelta) -> None:
    with pytest.raises(InvalidRequest, match=r"deadline is .*before the year 10000"):
        build_request("x", deadline=deadline)
    assert build_request("x", deadline=datetime(9999, 1, 1, tzinfo=UTC)).HasField("deadline_time")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"threads": -4}, "threads is '-4'"),
        ({"arena_bytes": 3}, "arena_bytes is '3'"),
        ({"metrics_port": 65_534}, "metrics_port is '65536'"),
        ({"drain_timeout_s": math.nan}, "drain_timeout_s is 'nan'"),
        ({"roles": {"encoder": RolePlan(dtype="int3"), "transformer": RolePlan(), "decoder": RolePlan()}}, "dtype is"),
    ],
)
def test_what_a_later_process_would_refuse_is_refused_before_the_first(
    settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        FleetPlan(str(tmp_path), tmp_path, **settings)  # type: ignore[arg-type]


def test_the_metrics_page_has_a_host() -> None:
    assert metrics_host({}) == "127.0.0.1"
    assert metrics_host({"OTEL_EXPORTER_PROMETHEUS_HOST": "[::1]"}) == "::1"
    with pytest.raises(InvalidRequest, match="OTEL_EXPORTER_PROMETHEUS_HOST is 'http://here'"):
        metrics_host({"OTEL_EXPORTER_PROMETHEUS_HOST": "http://here"})
