"""What is around a fleet: a mesh's sidecars, Prometheus, a collector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.kube.rendered import CHART, containers, example, of_kind, render
from triptych.environment import otlp_signals

DEMO: Mapping[str, Any] = {"fakeStageSeconds": 1}


@pytest.mark.parametrize(("pages", "signals"), [(True, {"traces"}), (False, {"traces", "metrics"})])
def test_metrics_go_one_way(pages: bool, signals: set[str]) -> None:
    values = {**DEMO, "metrics": {"enabled": pages}, "telemetry": {"otlpEndpoint": "http://collector:4317"}}
    for _name, container in containers(render(values)):
        assert otlp_signals({one["name"]: one.get("value", "") for one in container["env"]}) == signals


def test_the_job_is_the_one_that_the_alerts_ask_for() -> None:
    manifests = render(example("gpu-rdma"))
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    label = monitor["spec"]["jobLabel"]
    read = [one for one in manifests if one["kind"] == "Service" and "http-metrics" in str(one["spec"]["ports"])]
    assert {one["metadata"]["labels"][label] for one in read} == {"triptych"}
    assert 'up{job="triptych"}' in (CHART.parents[1] / "observability/alerts.yml").read_text()


def test_a_sidecar_leaves_mooncakes_ports_and_the_pages_alone() -> None:
    (first, last, page) = (16100, 16115, 9090)
    istio = of_kind(render(example("istio-tls")), "StatefulSet")["transformer"]
    annotations = istio["spec"]["template"]["metadata"]["annotations"]
    for way, pages in (("Inbound", [page]), ("Outbound", [])):
        listed = annotations[f"traffic.sidecar.istio.io/exclude{way}Ports"].split(",")
        assert [int(port) for port in listed] == [*range(first, last + 1), *pages]
    assert linkerd_ports({"metrics": {"enabled": True}}) == (f"{first}-{last},{page}", f"{first}-{last}")
    assert linkerd_ports({"metrics": {"enabled": False}}) == (f"{first}-{last}", f"{first}-{last}")
    variables = {one["name"]: one.get("value") for one in dict(containers([istio]))["transformer"]["env"]}
    assert (variables["MC_MIN_RPC_PORT"], variables["MC_MAX_RPC_PORT"]) == (str(first), str(last))


def linkerd_ports(values: dict[str, Any]) -> tuple[str, str]:
    """Those that a proxy leaves alone: inbound, outbound."""
    workload = of_kind(render({**DEMO, "mesh": {"kind": "linkerd"}, **values}), "StatefulSet")["transformer"]
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    inbound, outbound = (annotations[f"config.linkerd.io/skip-{way}-ports"] for way in ("inbound", "outbound"))
    return inbound, outbound
