"""The ConfigMap that docs/kubernetes.md makes of `deploy/envoy` fits the chart, and Envoy takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.kube.rendered import CHART, Manifest, example, of_kind, render, services

ROOT = CHART.parents[2]
ENVOY = Path(sys.executable).parent / "envoy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ConfigMap holds, by the document's own command."""
    found = tmp_path_factory.mktemp("config")
    (found / "deploy").symlink_to(ROOT / "deploy")
    command = re.search(r"^sed .*?> envoy.yaml$", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL | re.MULTILINE)
    assert command
    subprocess.run(["sh", "-euc", command[0]], cwd=found, check=True, timeout=60)
    shutil.copy(ROOT / "deploy/envoy/triptych.binpb", found)
    return found


def test_envoy_takes_it(folder: Path) -> None:
    command = [str(ENVOY), "--mode", "validate", "-c", "envoy.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_it_listens_and_calls_where_the_chart_has_them(folder: Path) -> None:
    manifests = render(example("istio-tls"))
    found = yaml.safe_load((folder / "envoy.yaml").read_text())["static_resources"]
    (listener,) = found["listeners"]
    envoy = of_kind(manifests, "Deployment")["envoy"]["spec"]["template"]["spec"]["containers"][0]
    assert address(listener) == ("0.0.0.0", envoy["ports"][0]["containerPort"])
    service = services(manifests)["demo-triptych-controller"]
    ports = {port["port"] for port in service["ports"] if port["name"].startswith("grpc")}
    for cluster in found["clusters"][:2]:
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        name, port = address(endpoint["endpoint"])
        assert cluster["name"] in ("jobs", "fleet")
        assert (name, service["clusterIP"]) == ("demo-triptych-controller", "None"), "all of them, for Envoy to choose"
        assert port in ports


def address(found: Manifest) -> tuple[str, int]:
    """Name and port."""
    socket = found["address"]["socket_address"]
    return socket["address"], socket["port_value"]
