"""The NetworkPolicies let exactly the flows through that the list names, for each set of values."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube.rendered import EXAMPLES, PROCESSES, Manifest, example, flows, merged, of_kind, render

Flow = tuple[str, str, int, int]
"""From, to, first and last port."""
TABLE = flows()


def holds(values: dict[str, Any], path: str) -> bool:
    for word in path.split("."):
        values = values[word]
    return bool(values)


def listed(values: dict[str, Any]) -> set[Flow]:
    found = set()
    for flow in TABLE["flows"]:
        if all(holds(values, path) for path in flow.get("when", ())):
            ports = TABLE["ports"].get(flow["port"], {"first": flow["port"]})
            found.add((flow["from"], flow["to"], ports["first"], ports.get("last", ports["first"])))
    return found


def who(peers: list[Manifest], values: dict[str, Any]) -> set[str]:
    """The names of a rule's other side: a component, or every outsider of the values with just these peers."""
    if len(peers) == 1 and "matchLabels" in peers[0].get("podSelector", {}):
        return {peers[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]}
    return {name for name, mine in values["networkPolicy"]["peers"].items() if mine == peers}


def allowed(manifests: list[Manifest], values: dict[str, Any]) -> set[tuple[str, frozenset[tuple[str, str]], int, int]]:
    """Each rule: its direction, the pairs that it may mean, its ports. DNS apart."""
    found = set()
    for name, policy in of_kind(manifests, "NetworkPolicy").items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == name
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"][direction]:
                if [port["port"] for port in rule["ports"]] == [53, 53]:
                    assert direction == "egress"
                    continue
                (port,) = rule["ports"]
                others = who(rule[key], values)
                pairs = frozenset((other, name) if key == "from" else (name, other) for other in others)
                found.add((direction, pairs, port["port"], port.get("endPort", port["port"])))
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_exactly_the_listed_flows(name: str) -> None:
    values = merged(example(name))
    inside = {*PROCESSES, *(["envoy"] if values["envoy"]["enabled"] else [])}
    rules = allowed(render(example(name)), values)
    wanted = listed(values)
    for source, target, first, last in wanted:
        for direction, side in (("ingress", target), ("egress", source)):
            if side in inside:
                rule = [r for r in rules if r[0] == direction and (source, target) in r[1] and r[2:] == (first, last)]
                assert rule, f"{source} -> {target}: {first} has no {direction}"
    for _direction, pairs, first, last in rules:
        assert any((*pair, first, last) in wanted for pair in pairs), f"{sorted(pairs)}: {first} is in no flow"


def test_a_flow_of_several_conditions_takes_all_of_them() -> None:
    """Envoy's way to the port for tokens is there with both."""
    for name, is_there in (("istio-tls", True), ("cpu-demo", False)):
        assert (("envoy", "controller", 7071, 7071) in listed(merged(example(name)))) == is_there
    values = example("istio-tls") | {"envoy": {"enabled": False}}
    rules = allowed(render(values), merged(values))
    assert not [pair for _, pairs, *_ in rules for pair in pairs if "envoy" in pair]


def test_every_pod_has_a_policy() -> None:
    for name in EXAMPLES:
        manifests = render(example(name))
        workloads = of_kind(manifests, "StatefulSet").keys() | of_kind(manifests, "Deployment").keys()
        assert of_kind(manifests, "NetworkPolicy").keys() == workloads


def test_ports_are_those_that_the_pods_open() -> None:
    manifests = render(example("istio-tls"))
    for name, workload in {**of_kind(manifests, "StatefulSet"), **of_kind(manifests, "Deployment")}.items():
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        opened = {port["containerPort"] for port in container["ports"]}
        named = {flow["port"] for flow in TABLE["flows"] if flow["to"] == name} - {"mooncake"}
        probed = {TABLE["ports"]["grpc"]["first"]} if name in PROCESSES else set()  # by the node, which needs no flow
        assert opened == {TABLE["ports"][port]["first"] for port in named} | probed, name
