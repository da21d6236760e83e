"""Proxies: none to this machine, whatever the environment says; to others the one that a setting names."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http_proxy import HttpProxy
from triptych import environment, rpc
from triptych.errors import InvalidRequest, Unavailable
from triptych_client import AsyncClient, RetryPolicy

ELSEWHERE = "fleet.example:7070"
"""Known to the proxy only."""
HASTY = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.1, total_s_max=5.0)
TIMEOUT_S = 120.0


async def command(*args: str, env: dict[str, str]) -> tuple[int, str, str]:
    """Run `triptych` beside the servers of this event loop."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(root / "clients")))
    done = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-m", "triptych_client.cli", *args),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **env},
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("setting", ["", "TRIPTYCH_PROXY"])
async def test_nothing_goes_to_loopback_through_a_proxy(server: rpc.Server, tmp_path: Path, setting: str) -> None:
    with HttpProxy() as proxy:
        env = {**proxy.environment, **({setting: proxy.url} if setting else {})}
        for host in ("127.0.0.1", "localhost"):
            output = str(tmp_path / f"{host}.mp4")
            code, _out, err = await command(
                "generate", "a circle", "-o", output, "--endpoint", f"{host}:{server.port}", "--quiet", env=env
            )
            assert (code, err) == (0, "")
        assert proxy.asked == []


async def test_a_setting_takes_a_client_through_a_proxy(server: rpc.Server, tmp_path: Path) -> None:
    with HttpProxy(server.address) as proxy:
        async with AsyncClient(ELSEWHERE, HASTY, proxy=proxy.url) as client:
            made = await client.generate("a circle", tmp_path / "out.mp4")
        assert made.paths[0].stat().st_size == made.job.artifacts[0].size_bytes
        assert set(proxy.asked) == {f"CONNECT {ELSEWHERE} HTTP/1.1"}
        for flags, env in (((), {"TRIPTYCH_PROXY": proxy.url}), (("--proxy", proxy.url), {"TRIPTYCH_PROXY": ""})):
            del proxy.asked[:]
            code, out, _err = await command("status", "--json", "--endpoint", ELSEWHERE, *flags, env=env)
            assert (code, bool(json.loads(out))) == (0, True)
            assert proxy.asked == [f"CONNECT {ELSEWHERE} HTTP/1.1"]


async def test_an_error_names_the_proxy_and_not_its_password() -> None:
    with HttpProxy() as proxy:
        url = proxy.url.replace("http://", "http://somebody:secret@")
        async with AsyncClient(ELSEWHERE, HASTY, proxy=url) as client:
            with pytest.raises(Unavailable, match=f"{ELSEWHERE}, through the proxy http://{proxy.address}") as caught:
                await client.get_fleet()
        assert "403" in str(caught.value)
        assert "secret" not in str(caught.value)


async def test_an_error_says_that_the_environments_proxy_is_not_used() -> None:
    """Else who has always had one would look for the fault elsewhere."""
    with HttpProxy() as proxy:
        env = {**proxy.environment, "TRIPTYCH_PROXY": ""}
        code, _out, err = await command("status", "--once", "--endpoint", "fleet.invalid:7070", env=env)
        assert code == 1
        assert "without the proxy of grpc_proxy (only TRIPTYCH_PROXY counts)" in err
        assert len(err.splitlines()) == 1
        assert proxy.asked == []


def test_who_is_reached_through_the_proxy() -> None:
    environ = {"TRIPTYCH_PROXY": "http://proxy:3128", "no_proxy": "internal,10.0.0.0/8", "http_proxy": "http://other:1"}
    for host in ("127.0.0.1", "::1", "localhost", "a.internal", "10.1.2.3"):
        assert environment.proxy_for(host, None, environ) is None, host
    assert str(environment.proxy_for("fleet.example", None, environ)) == "http://proxy:3128"
    assert str(environment.proxy_for("fleet.example", "http://mine:1", environ)) == "http://mine:1"
    assert environment.proxy_for("fleet.example", "", environ) is None
    assert environment.proxy_for("fleet.example", None, {"http_proxy": "http://other:1"}) is None


@pytest.mark.parametrize(
    ("endpoint", "option"),
    [
        ("http://127.0.0.1:4317", ("grpc.enable_http_proxy", 0)),
        ("localhost:4317", ("grpc.enable_http_proxy", 0)),
        ("https://collector.example", ("grpc.http_proxy", "http://proxy:3128")),
    ],
)
def test_collectors_are_reached_by_the_same_rule(endpoint: str, option: tuple[str, object]) -> None:
    environ = {"TRIPTYCH_PROXY": "http://proxy:3128", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    assert environment.otlp_options("traces", environ) == (option,)


@pytest.mark.parametrize("endpoint", ["http://collector:99999", "http://", "a b", "http://[::1"])
def test_a_collector_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is .*; accepted: http://host:port"):
        environment.otlp_options("metrics", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
