"""The chart as Helm renders it, offline, for a set of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

HELM = Path(__file__).parents[2] / "deploy/helm"
CHART = HELM / "triptych"
EXAMPLES = sorted(path.stem for path in (HELM / "examples").glob("*.yaml"))
NAMESPACE, RELEASE = "video", "demo"
WORKERS = ("encoder", "transformer", "decoder")
PROCESSES = ("controller", *WORKERS)
Manifest = dict[str, Any]


def example(name: str) -> dict[str, Any]:
    """A set of values that comes with the chart."""
    found = yaml.safe_load((HELM / "examples" / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


def render(values: Mapping[str, Any]) -> list[Manifest]:
    """All manifests. Raises helm_python's errors, among them for values that the schema refuses."""
    with Chart.load(CHART) as chart:
        texts = chart.render(values=dict(values), name=RELEASE, namespace=NAMESPACE)
    parts = [part for path, text in texts.items() if path.endswith(".yaml") for part in yaml.safe_load_all(text)]
    return [part for part in parts if part]


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the chart's defaults below them."""
    with Chart.load(CHART) as chart:
        return chart.merge_values(dict(values))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Those of a kind, by component."""
    return {component(one): one for one in manifests if one["kind"] == kind}


def services(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The Services' definitions by name: controllers have two."""
    return {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}


def component(manifest: Manifest) -> str:
    """Which process it belongs to; empty for all."""
    return str(manifest["metadata"]["labels"].get("app.kubernetes.io/component", ""))


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Our processes' containers."""
    for name, workload in of_kind(manifests, "StatefulSet").items():
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        yield name, container


def flows() -> dict[str, Any]:
    """The list of flows."""
    found = yaml.safe_load((CHART / "flows.yaml").read_text())
    assert isinstance(found, dict)
    return found
