"""The real Envoy over the project's own configuration, with its ports changed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fleet.processes import STOP_TIMEOUT_S, free_port, wait_until

DEPLOYED = Path(__file__).parents[2] / "deploy/envoy"
ENVOY = Path(sys.executable).parent / "envoy"
START_TIMEOUT_S = 60.0
LISTENER, ADMIN, OTLP = 8080, 9901, 4317
CONTROLLERS = (7070, 7071)
"""The ports of `deploy/envoy/envoy.yaml`."""


@dataclass(frozen=True)
class Proxy:
    """A running Envoy."""

    address: str
    """Where it serves, `host:port`."""
    admin: str
    """The URL of its own pages."""
    log: Path

    def page(self, name: str) -> Any:
        """One of its own pages in JSON."""
        return json.loads(get(f"{self.admin}/{name}?format=json"))

    def healthy(self, cluster: str = "jobs") -> set[str]:
        """The addresses that a cluster's calls go to."""
        for status in self.page("clusters")["cluster_statuses"]:
            if status["name"] == cluster:
                return {_address(host["address"]) for host in status.get("host_statuses", []) if _is_healthy(host)}
        return set()

    def counter(self, name: str) -> int:
        """One of its counters, for example `cluster.jobs.upstream_rq_retry`."""
        stats = self.page("stats")["stats"]
        return int(next((stat["value"] for stat in stats if stat.get("name") == name), 0))


def get(url: str) -> bytes:
    """A page's content."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
        return bytes(response.read())


@contextmanager
def envoy(
    folder: Path,
    controllers: Sequence[str],
    otlp: str = "",
    *,
    flags: Sequence[str] = (),
    authority: Path | None = None,
) -> Iterator[Proxy]:
    """Run Envoy before one or two controllers, once it can pass calls on to one of them.

    `otlp` is where its spans go. With the certificate of a fleet's `authority` it calls controllers as the README says
    for those with TLS.
    """
    folder.mkdir(parents=True)
    shutil.copy(DEPLOYED / "triptych.binpb", folder)
    ports = dict(zip(CONTROLLERS, map(_port, controllers), strict=False))
    ports |= {LISTENER: 0, ADMIN: 0, OTLP: _port(otlp) if otlp else free_port()}
    ports |= {port: free_port() for port in CONTROLLERS if port not in ports}
    text = (DEPLOYED / "envoy.yaml").read_text()
    if authority:
        shutil.copy(authority, folder / "ca.crt")
        text = text.replace("    common_lb_config:", f"{_transport_socket()}    common_lb_config:")
    (folder / "envoy.yaml").write_text(
        re.sub(r"port_value: (\d+)", lambda found: f"port_value: {ports[int(found[1])]}", text)
    )
    command = [str(ENVOY), "-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1"]
    command += ["--admin-address-path", "admin", "--log-level", "warning", *flags]
    log = folder / "envoy.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            yield _started(process, folder, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _transport_socket() -> str:
    """What the README gives both clusters of controllers with TLS."""
    block = re.search(r"```yaml\n(transport_socket:.*?)```", (DEPLOYED / "README.md").read_text(), re.DOTALL)
    assert block
    return textwrap.indent(block[1], " " * 4)


def _started(process: subprocess.Popen[bytes], folder: Path, log: Path) -> Proxy:
    admin = folder / "admin"

    def is_listening() -> bool:
        assert process.poll() is None, log.read_text()
        return admin.exists() and admin.read_text().strip() != ""

    wait_until(is_listening, START_TIMEOUT_S, "Envoy listens")
    proxy = Proxy("", f"http://{admin.read_text().strip()}", log)

    def is_ready() -> bool:
        try:
            return get(f"{proxy.admin}/ready").startswith(b"LIVE") and bool(proxy.healthy())
        except urllib.error.HTTPError:
            return False  # it initialises

    wait_until(is_ready, START_TIMEOUT_S, f"Envoy finds a controller that serves: {log.read_text()}")
    (listener,) = proxy.page("listeners")["listener_statuses"]
    return Proxy(_address(listener["local_address"]), proxy.admin, log)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _address(found: dict[str, Any]) -> str:
    return f"{found['socket_address']['address']}:{found['socket_address']['port_value']}"


def _is_healthy(host: dict[str, Any]) -> bool:
    status = dict(host["health_status"])
    return status.pop("eds_health_status", "") == "HEALTHY" and not any(status.values())
