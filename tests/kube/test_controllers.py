"""One controller is active, and others stand by: nothing waits for those, and nobody is led to them."""

from __future__ import annotations

import re

import pytest
import yaml
from helm_python.chart import Chart

from tests.kube.rendered import (
    CHART,
    EXAMPLES,
    NAMESPACE,
    RELEASE,
    WORKERS,
    Manifest,
    example,
    of_kind,
    render,
    services,
)

DOCS = CHART.parents[2] / "docs"


@pytest.fixture(params=EXAMPLES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(example(request.param))


def test_a_standby_that_is_never_ready_holds_nobody_up() -> None:
    manifests = render(example("gpu-rdma"))
    sets = of_kind(manifests, "StatefulSet")
    assert sets["controller"]["spec"]["updateStrategy"] == {"type": "OnDelete"}, "a rolling update waits for Ready"
    assert of_kind(manifests, "PodDisruptionBudget").keys() == set(WORKERS), "the active one must be free to go"
    rolling = [sets[role] for role in WORKERS] + [of_kind(render(example("cpu-demo")), "StatefulSet")["controller"]]
    assert not any("updateStrategy" in one["spec"] for one in rolling)


def test_the_active_controller_has_a_service_of_its_own(manifests: list[Manifest]) -> None:
    found = services(manifests)
    every, active = found["demo-triptych-controller"], found["demo-triptych-controller-active"]
    assert every["publishNotReadyAddresses"], "workers must reach a controller that waits for the first of them"
    assert "publishNotReadyAddresses" not in active
    assert active["selector"] == every["selector"]
    names = {port["name"] for port in every["ports"]}
    assert {port["name"] for port in active["ports"]} == names - {"http-metrics"}, "each page is read once"


def test_who_scales_owns_the_number() -> None:
    """With KEDA the workload has no `replicas`, or each upgrade of the release would set them back."""
    manifests = render(example("gpu-rdma"))
    sets = of_kind(manifests, "StatefulSet")
    scaled = of_kind(manifests, "ScaledObject")
    assert set(scaled) == set(WORKERS)
    for role, one in scaled.items():
        assert "replicas" not in sets[role]["spec"]
        assert one["spec"]["scaleTargetRef"]["name"] == sets[role]["metadata"]["name"]
        (trigger,) = one["spec"]["triggers"]
        assert trigger["metadata"]["role"] == role
        host, _, port = trigger["metadata"]["scalerAddress"].rpartition(":")
        service = services(manifests)[host.removesuffix(f".{NAMESPACE}.svc")]
        assert not service.get("publishNotReadyAddresses"), "a standby refuses KEDA"
        assert int(port) in {one["port"] for one in service["ports"]}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert "replicas" in of_kind(render(example("cpu-demo")), "StatefulSet")["encoder"]["spec"]


def test_the_document_s_scaled_object_is_the_chart_s() -> None:
    found = re.search(r"```yaml\n(.*?)```", (DOCS / "autoscaling.md").read_text(), re.DOTALL)
    assert found
    text = found[1].replace("name: triptych-", f"name: {RELEASE}-triptych-")
    text = text.replace("triptych-controller-active.triptych.", f"{RELEASE}-triptych-controller-active.{NAMESPACE}.")
    mine = yaml.safe_load(text)
    values = {"transformer": {"minReplicas": 0, "maxReplicas": 8}, "keda": {"enabled": True}, "fakeStageSeconds": 1}
    charts = of_kind(render(values), "ScaledObject")["transformer"]
    assert mine["metadata"]["name"] == charts["metadata"]["name"]
    times = {"pollingInterval", "cooldownPeriod"}
    assert mine["spec"] == {name: value for name, value in charts["spec"].items() if name not in times}


def test_the_first_words_lead_to_a_service_that_there_is() -> None:
    with Chart.load(CHART) as chart:
        texts = chart.render(values={"fakeStageSeconds": 1}, name=RELEASE, namespace=NAMESPACE)
    (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
    known = services(render({"fakeStageSeconds": 1}))
    for text in (notes, (DOCS / "kubernetes.md").read_text()):
        led = re.findall(r"port-forward service/(\S+) (\d+)", text)
        assert led
        assert all(
            int(port) in {one["port"] for one in known[name]["ports"]} for name, port in led if "envoy" not in name
        )


def test_a_mesh_is_told_which_ports_speak_tls(manifests: list[Manifest]) -> None:
    """Istio takes a port's name for its protocol, and would look for HTTP in TLS."""
    workload = of_kind(manifests, "StatefulSet")["controller"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    protocol = "tls" if "--tls=/tls" in container["args"] else "grpc"
    for service in services(manifests).values():
        for port in service["ports"]:
            assert port.get("appProtocol", protocol) == protocol
            assert ("appProtocol" in port) == port["name"].startswith("grpc")
