"""What a process says of itself with its spans and metrics."""

from __future__ import annotations

import pytest

from tests.fleet.processes import free_port
from tests.telemetry.pages import scrape
from tests.telemetry.receiver import Receiver
from triptych import telemetry
from triptych.telemetry.resource import own_version
from triptych.v1.dispatch_pb2 import ROLE_ENCODER


def test_a_worker_is_its_rank_and_epoch_once_it_has_one(exporting: Receiver) -> None:
    with telemetry.setup("triptych-encoder") as metrics:
        for epoch in (4, 5):  # a second registration: the controller came back
            telemetry.identify(3, epoch)
            with telemetry.span(f"epoch {epoch}"):
                pass
            exporting.wait_for(
                lambda spans, epoch=epoch: spans[-1:] and spans[-1].name == f"epoch {epoch}", timeout_s=20
            )
        telemetry.WorkerMetrics(ROLE_ENCODER, metrics.meter).stage_ran(1.0)
    first, second = exporting.spans
    assert first.resource["service.instance.id"] == "3-4"
    assert second.resource["service.instance.id"] == "3-5"
    assert exporting.metric_instances == {"3-5"}
    own = {"service.name": "triptych-encoder", "service.namespace": "triptych", "service.version": own_version()}
    assert own.items() <= second.resource.items()
    assert second.scope == ("triptych", own_version())


def test_the_environment_adds_to_it(exporting: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=films,deployment.environment.name=test")
    with telemetry.setup("triptych-client"), telemetry.span("generate"):
        pass
    (span,) = exporting.spans
    assert span.resource["service.namespace"] == "films"
    assert span.resource["deployment.environment.name"] == "test"
    assert span.resource["service.name"] == "triptych-client"


def test_a_page_says_whose_it_is_also_once_a_worker_has_its_rank() -> None:
    port = free_port()

    def target() -> dict[str, str]:
        (labels,) = (dict(labels) for name, labels in scrape(port) if name == "target_info")
        return labels

    with telemetry.setup("triptych-encoder", metrics_port=port):
        before = target()
        telemetry.identify(3, 5)
        after = target()
    assert (after["service_name"], after["service_namespace"]) == ("triptych-encoder", "triptych")
    assert after["service_instance_id"] == "3-5" != before["service_instance_id"]
