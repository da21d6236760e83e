"""A real Prometheus reads a real fleet: every query that ships has an answer, and a fleet that goes down is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.fleet.processes import CONTROLLER, DEATH_TIMEOUT_S, ROLES, Fleet, free_port, wait_until
from tests.observability import queries
from tests.observability.prometheus import Prometheus

PORTS = {name: free_port() for name in (CONTROLLER, *(f"{role}-0" for role in ROLES))}
ANSWER_TIMEOUT_S = 60.0
ALERT_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(
        tmp_path_factory.mktemp("fleet"),
        "",
        worker_flags=("--fake-stage-seconds", "0.2"),
        flags_by_name={name: ("--metrics-port", str(port)) for name, port in PORTS.items()},
        worker_timeout_s=DEATH_TIMEOUT_S,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus"), PORTS.values()) as started:
        yield started


def work(fleet: Fleet, folder: Path, name: str) -> None:
    """One job, and a call that ends badly."""
    with fleet.client() as client:
        client.generate("a cat", folder / f"{name}.npy", height=32, width=48)
    with grpc.insecure_channel(fleet.endpoint) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/made.up.Service/Method")(b"", timeout=20)


def test_every_query_has_an_answer_from_a_fleet_that_works(
    fleet: Fleet, prometheus: Prometheus, tmp_path: Path
) -> None:
    work(fleet, tmp_path, "first")
    seen_twice = "count(count_over_time(triptych_stage_run_seconds_count[30s]) > 1) == 3"
    wait_until(lambda: prometheus.query(seen_twice), ANSWER_TIMEOUT_S, "a second look at each stage's first run")
    expected = {key: expression for key, expression in queries.panels().items() if queries.is_everywhere(expression)}
    jobs = iter(range(100))

    def missing() -> list[str]:
        work(fleet, tmp_path, f"job-{next(jobs)}")
        return [key for key, expression in expected.items() if not prometheus.query(expression)]

    wait_until(lambda: not missing(), ANSWER_TIMEOUT_S, "an answer to each query")
    names = prometheus.names()
    for key, expression in {**queries.panels(), **queries.alerts()}.items():
        prometheus.query(expression)  # also those that not every fleet has: without an error
        assert set(filter(queries.is_everywhere, queries.metrics(expression))) <= names, key
    healths = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in loaded(prometheus)}
    assert healths == dict.fromkeys(queries.alerts(), ("ok", None))
    wait_until(lambda: not prometheus.states(), ALERT_TIMEOUT_S, "a time without alerts")  # a busy machine reads late


def loaded(prometheus: Prometheus) -> list[dict[str, object]]:
    """The rules as Prometheus has them."""
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def test_workers_that_are_gone_raise_an_alert_and_their_return_ends_it(fleet: Fleet, prometheus: Prometheus) -> None:
    for name in fleet.workers:
        fleet.kill(name)
    with fleet.client() as client:
        client.create_job("a cat that waits", height=32, width=48)
    wait_until(
        lambda: prometheus.states().get("TriptychFleetDown") == "firing",
        ALERT_TIMEOUT_S,
        "an alert that the fleet is down",
    )
    assert prometheus.states()["TriptychPageDown"] in ("pending", "firing")
    for name in fleet.workers:
        fleet.spawn(name)
    for name in fleet.workers:
        fleet.wait_ready(name)
    wait_until(lambda: not prometheus.states(), ALERT_TIMEOUT_S, "an end of all alerts")


def test_a_controller_that_is_gone_raises_an_alert(fleet: Fleet, prometheus: Prometheus) -> None:
    fleet.kill(CONTROLLER)
    wait_until(
        lambda: prometheus.states().get("TriptychControllerDown") == "firing",
        ALERT_TIMEOUT_S,
        "an alert that the controller is down",
    )
    fleet.start(CONTROLLER)
    wait_until(lambda: not prometheus.states(), ALERT_TIMEOUT_S, "an end of all alerts")
