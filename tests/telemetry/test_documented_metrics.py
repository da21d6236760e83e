"""docs/telemetry.md lists all metrics of a real fleet, on its pages and at its collector, and no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import grpc
import pytest

from tests.fleet.processes import CONTROLLER, ROLES, Fleet, free_port, wait_until
from tests.telemetry import pages
from tests.telemetry.receiver import Receiver
from tests.telemetry.tables import TELEMETRY, TEXT_ENCODER, quoted, table
from triptych.errors import JobFailed

WORKERS = {f"triptych-{role}" for role in ROLES}
PROCESSES = {
    "controller": {"triptych-controller"},
    "workers": WORKERS,
    "workers on an NVIDIA device": WORKERS,
    "all": {"triptych-controller", *WORKERS},
}
FETCHING = {"triptych_transfer_seconds": WORKERS - {"triptych-encoder"}}
"""Histograms are there from their first value on, and encoders fetch nothing."""
RECEIVED_TIMEOUT_S = 60.0


class Row(NamedTuple):
    """A metric as it is documented."""

    page: str
    otlp: str
    labels: frozenset[str]
    services: frozenset[str]


class Shown(NamedTuple):
    """What a fleet shows."""

    pages: Mapping[tuple[str, str], set[str]]
    """Labels by service and metric."""
    otlp: Mapping[tuple[str, str], set[str]]
    receiver: Receiver


def documented() -> list[Row]:
    found = []
    for row in table(TELEMETRY, "## Metrics"):
        if "NVIDIA" in row["process"] or row["process"] == TEXT_ENCODER:
            continue  # the machines of the tests have none; tests/engines has the text encoder's
        (page,) = quoted(row["on the page"])
        (otlp,) = quoted(row["over OTLP"]) or (page,)
        services = FETCHING.get(page, PROCESSES[row["process"]])
        found.append(Row(page, otlp, frozenset(quoted(row["labels"])), frozenset(services)))
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A fleet that has done all that makes a metric appear."""
    folder = tmp_path_factory.mktemp("documented")
    ports = {name: free_port() for name in (CONTROLLER, *(f"{role}-0" for role in ROLES))}
    expected = {(service, row.otlp) for row in documented() for service in row.services}
    with (
        Receiver() as receiver,
        Fleet(
            folder / "fleet",
            "",
            worker_flags=("--fake-stage-seconds", "0.1"),
            flags_by_name={name: ("--metrics-port", str(port)) for name, port in ports.items()},
            env={
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            },
        ) as fleet,
        fleet.client() as client,
    ):
        client.generate("a cat", folder / "out.npy", height=32, width=48)
        with pytest.raises(JobFailed):
            client.generate("a cat", folder / "no.npy", parameters={"refuse": True})
        for name in fleet.workers:  # a call that is the server's fault, at each
            with grpc.insecure_channel(fleet.addresses[name]) as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary("/made.up.Service/Method")(b"", timeout=20)
        wait_until(
            lambda: expected <= receiver.metric_labels().keys(),
            RECEIVED_TIMEOUT_S,
            f"at the collector: {expected - receiver.metric_labels().keys()}",
        )
        yield Shown(
            {
                (f"triptych-{name.partition('-')[0]}", metric): labels
                for name, port in ports.items()
                for metric, labels in pages.labels(port).items()
            },
            receiver.metric_labels(),
            receiver,
        )


def services_by_metric(found: Mapping[tuple[str, str], set[str]]) -> dict[str, set[str]]:
    services = defaultdict(set)
    for service, metric in found:
        services[metric].add(service)
    return dict(services)


def labels_by_metric(found: Mapping[tuple[str, str], set[str]]) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = defaultdict(set)
    for (_service, metric), own in found.items():
        labels[metric] |= own
    return dict(labels)


def test_the_pages_hold_what_is_documented_and_nothing_else(shown: Shown) -> None:
    found = {key: labels for key, labels in shown.pages.items() if key[1] != "target_info"}  # the resource itself
    assert services_by_metric(found) == {row.page: row.services for row in documented()}
    expected = {row.page: {label.replace(".", "_") for label in row.labels} for row in documented()}
    assert labels_by_metric(found) == expected


def test_the_collector_gets_what_is_documented_and_nothing_else(shown: Shown) -> None:
    assert services_by_metric(shown.otlp) == {row.otlp: row.services for row in documented()}
    assert labels_by_metric(shown.otlp) == {row.otlp: row.labels for row in documented()}


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("triptych-encoder", "triptych.queue.wait"),
        ("triptych-transformer", "triptych.stage.run"),
        ("triptych-decoder", "triptych.transfer"),
        ("triptych-controller", "triptych.job.duration"),
        ("triptych-controller", "rpc.server.call.duration"),
    ],
)
def test_histograms_lead_to_traces_of_jobs(shown: Shown, service: str, name: str) -> None:
    jobs = {span.trace_id for span in shown.receiver.spans if "triptych.job_id" in span.attributes}
    traces = shown.receiver.exemplar_traces(service, name)
    assert traces
    assert traces <= jobs


def test_the_four_names_that_dashboards_of_users_hold_are_as_they_were(shown: Shown) -> None:
    for name, labels in (
        ("queue_sizes", {"ring"}),
        ("queue_in_flight", {"ring"}),
        ("queue_total_pending", set()),
        ("all_queues_empty", set()),
    ):
        assert shown.pages["triptych-controller", name] == labels
        assert shown.otlp["triptych-controller", name] == labels
