"""The chart, rendered by Helm without a cluster: strictly valid, with settings that exist and probes that can pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
from helm_python import errors as helm_errors

from services.worker.servicers import WORKER_SERVICE
from tests.kube.rendered import (
    CHART,
    EXAMPLES,
    PROCESSES,
    Manifest,
    component,
    containers,
    example,
    merged,
    of_kind,
    render,
)
from triptych.config import ControllerConfig, WorkerConfig, load
from triptych.security.auth import SCOPES_BY_ROLE
from triptych.security.certificates import CA_FILE, CERTIFICATE_FILE, KEY_FILE, SPIFFE_PREFIX
from triptych.security.rules import RULES

DEMO: Mapping[str, Any] = {"fakeStageSeconds": 1}
VERSIONS = ("1.29", "1.33", "1.37")
REFUSED = helm_errors.HelmError
CUSTOM: Mapping[str, Mapping[str, Any]] = {
    "ScaledObject": {
        "scaleTargetRef": {"apiVersion", "kind", "name"},
        "pollingInterval": int,
        "cooldownPeriod": int,
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "triggers": [{"type", "metricType", "metadata", "authenticationRef"}],
    },
    "ServiceMonitor": {
        "jobLabel": str,
        "selector": {"matchLabels"},
        "namespaceSelector": {"matchNames"},
        "targetLabels": list,
        "endpoints": [{"port", "interval"}],
    },
    "Certificate": {
        "secretName": str,
        "issuerRef": {"name", "kind", "group"},
        "commonName": str,
        "dnsNames": list,
        "uris": list,
        "usages": list,
        "privateKey": {"algorithm", "size", "rotationPolicy"},
        "duration": str,
        "renewBefore": str,
    },
}
"""Fields that we use of others' kinds, as their definitions have them (KEDA 2, Prometheus' operator, cert-manager v1).
kubernetes-validate knows Kubernetes' own kinds only."""
API = {
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "Certificate": "cert-manager.io/v1",
}


@pytest.fixture(params=EXAMPLES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(example(request.param))


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_strictly_valid(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] in CUSTOM:
            check_custom(manifest)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    """The check checks."""
    service = copy.deepcopy(of_kind(render(example("cpu-demo")), "Service")["controller"])
    service["spec"]["clusterIp"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[-1], strict=True)
    (scaled, *_) = of_kind(render(example("gpu-rdma")), "ScaledObject").values()
    scaled["spec"]["coolDownPeriod"] = 3
    with pytest.raises(AssertionError):
        check_custom(scaled)


def check_custom(manifest: Manifest) -> None:
    kind = manifest["kind"]
    assert manifest["apiVersion"] == API[kind]
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    for name, value in manifest["spec"].items():
        wanted = CUSTOM[kind].get(name)
        assert wanted is not None, f"{kind}.spec.{name}"
        if isinstance(wanted, set):
            assert value.keys() <= wanted
        elif isinstance(wanted, list):
            assert all(one.keys() <= wanted[0] for one in value)
        else:
            assert isinstance(value, wanted)


def test_every_flag_is_a_setting(manifests: list[Manifest]) -> None:
    """As the process itself reads them: names, types and bounds."""
    found = dict(containers(manifests))
    assert set(found) == set(PROCESSES)
    for name, container in found.items():
        assert container["command"] == ["python", "-P", "-m", f"triptych_services.{name}"]
        arguments = [one.replace("$(POD_IP)", "10.0.0.1").replace("$(POD_NAME)", "pod-0") for one in container["args"]]
        variables = {one["name"]: one.get("value", "postgresql://db/triptych") for one in container["env"]}
        config = load(ControllerConfig if name == "controller" else WorkerConfig, arguments, variables)
        assert config.address == "0.0.0.0:7070"


def test_a_pod_has_the_time_that_it_may_take_to_leave(manifests: list[Manifest]) -> None:
    for name, workload in of_kind(manifests, "StatefulSet").items():
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        arguments = [one.replace("$(POD_IP)", "a").replace("$(POD_NAME)", "a") for one in container["args"]]
        config: Any = load(ControllerConfig if name == "controller" else WorkerConfig, arguments, {})
        parts = ("drain_timeout_s", "release_timeout_s", "lame_duck_s")
        needed_s = sum(getattr(config, part, 0.0) for part in parts)
        assert needed_s < workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] < needed_s + 90


def test_probes_ask_for_services_that_there_are(manifests: list[Manifest]) -> None:
    """Readiness of a controller must ask for FleetService: as a whole it waits for the workers."""
    known = {path.split("/")[1] for path in RULES} | {WORKER_SERVICE, ""}
    for name, container in containers(manifests):
        probe = container["readinessProbe"]
        if "grpc" in probe:
            service = probe["grpc"].get("service", "")
        else:
            command = probe["exec"]["command"]
            assert command[:2] == ["triptych", "health"]
            service = command[command.index("--service") + 1] if "--service" in command else ""
        assert service in known
        assert service == ("triptych.v1.FleetService" if name == "controller" else "")
        assert container["livenessProbe"]["tcpSocket"]["port"] in {port["name"] for port in container["ports"]}


def test_kubelets_cannot_speak_tls_so_a_command_probes_it() -> None:
    for _name, container in containers(render(example("istio-tls"))):
        assert "exec" in container["readinessProbe"]


def test_pods_may_do_little(manifests: list[Manifest]) -> None:
    accounts = of_kind(manifests, "ServiceAccount")
    budgets = of_kind(manifests, "PodDisruptionBudget")
    for name, workload in of_kind(manifests, "StatefulSet").items():
        pod = workload["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == accounts[name]["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        if name != "controller":
            assert budgets[name]["spec"]["selector"]["matchLabels"].items() <= labels


def test_workers_have_shared_memory_of_a_size_and_what_they_mount(manifests: list[Manifest]) -> None:
    for name, workload in of_kind(manifests, "StatefulSet").items():
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        assert mounts.keys() == volumes.keys() | claims
        if name != "controller":
            assert mounts["shared-memory"] == "/dev/shm"
            memory = volumes["shared-memory"]["emptyDir"]
            assert memory["medium"] == "Memory"
            assert memory["sizeLimit"]
        results = [one for one in container["args"] if one.startswith("--result-url=file://")]
        assert ("/results" in mounts.values()) == (bool(results) or (name == "decoder" and "/results" in shared(pod)))


def shared(pod: Manifest) -> list[str]:
    (container,) = pod["containers"]
    return [mount["mountPath"] for mount in container["volumeMounts"]]


def test_gpus_rdma_hugepages_and_the_standbys_secret() -> None:
    found = dict(containers(render(example("gpu-rdma"))))
    limits = found["transformer"]["resources"]["limits"]
    assert limits == {
        "nvidia.com/gpu": 1,
        "memory": "64Gi",
        "rdma/hca_shared_devices_a": 1,
        "hugepages-2Mi": "512Mi",
    }
    assert found["transformer"]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    (journal,) = [one for one in found["controller"]["env"] if one["name"] == "TRIPTYCH_JOURNAL"]
    assert journal["valueFrom"]["secretKeyRef"] == {"name": "triptych-journal", "key": "url"}


def test_certificates_say_role_and_names() -> None:
    manifests = render(example("istio-tls"))
    for role, one in of_kind(manifests, "Certificate").items():
        assert one["spec"]["uris"] == [SPIFFE_PREFIX + role]
        assert role in SCOPES_BY_ROLE
        workload = of_kind(manifests, "StatefulSet")[role]
        secrets = {v["secret"]["secretName"] for v in workload["spec"]["template"]["spec"]["volumes"] if "secret" in v}
        assert one["spec"]["secretName"] in secrets
        assert {CA_FILE, CERTIFICATE_FILE, KEY_FILE} == {"ca.crt", "tls.crt", "tls.key"}, "cert-manager's own names"
    for scaled in of_kind(manifests, "ScaledObject").values():
        (trigger,) = scaled["spec"]["triggers"]
        host = trigger["metadata"]["scalerAddress"].partition(":")[0]
        assert host in of_kind(manifests, "Certificate")["controller"]["spec"]["dnsNames"]
    for role, container in containers(manifests):
        if role != "controller":
            (flag,) = [one for one in container["args"] if one.startswith("--advertise-host=$(POD_NAME).")]
            names = of_kind(manifests, "Certificate")[role]["spec"]["dnsNames"]
            assert "*." + flag.partition("$(POD_NAME).")[2] in names
            controller = next(one for one in container["args"] if one.startswith("--controller="))
            host = controller.removeprefix("--controller=").rpartition(":")[0]
            assert "*." + host.partition(".")[2] in of_kind(manifests, "Certificate")["controller"]["spec"]["dnsNames"]


def test_all_processes_with_tokens_have_their_list() -> None:
    """One without it would be open to all."""
    for tls in (False, True):
        for _name, container in containers(render({**DEMO, "tokens": {"secretName": "t"}, "tls": {"enabled": tls}})):
            assert "--tokens=/tokens/tokens.toml" in container["args"]
            assert "/tokens" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fakeStageSecond": 1}, "fakeStageSecond"),
        ({"fakeStageSeconds": -1}, "fakeStageSeconds"),
        ({"mesh": {"kind": "consul"}}, "kind"),
        ({"fakeStageSeconds": 1, "controller": {"replicas": 2}}, "secretName"),
        ({"fakeStageSeconds": 1, "clientPort": {"enabled": True}}, "tls"),
        ({"settings": {"--drain": 3}}, "--drain"),
        ({}, "model.name, or fakeStageSeconds, is needed"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(REFUSED) as caught:
        render(values)
    assert words in str(caught.value)


def test_the_schema_knows_every_value_of_the_defaults() -> None:
    with_all = merged({"fakeStageSeconds": 1})
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(with_all) - {"global"} <= set(schema["properties"])


def test_components_are_named(manifests: list[Manifest]) -> None:
    shared_kinds = {"PersistentVolumeClaim", "ServiceMonitor"}
    for manifest in manifests:
        assert bool(component(manifest)) != (manifest["kind"] in shared_kinds), manifest["kind"]
