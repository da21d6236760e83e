"""The Prometheus page and metrics over OTLP."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.processes import free_port
from tests.telemetry.receiver import Receiver
from triptych import telemetry
from triptych.errors import InvalidRequest


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Samples by name and by the value of our one label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        text = page.read().decode()
    return {
        (
            sample.name,
            next((sample.labels[key] for key in ("ring", "stage", "mover") if key in sample.labels), ""),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_shows_rings_as_they_are_now() -> None:
    port, ready = free_port(), {"request": 2, "phase1": 1, "phase2": 0}
    with telemetry.setup("controller", metrics_port=port) as metrics:
        metrics.watch_rings(lambda: [telemetry.RingDepth(ring, count, 3) for ring, count in ready.items()])
        page = scrape(port)
        assert {ring: page["queue_sizes", ring] for ring in ready} == ready
        assert {ring: page["queue_in_flight", ring] for ring in ready} == dict.fromkeys(ready, 3)
        assert page["queue_total_pending", ""] == 3
        assert page["all_queues_empty", ""] == 0
        ready.update(dict.fromkeys(ready, 0))
        page = scrape(port)
        assert page["queue_total_pending", ""] == 0
        assert page["all_queues_empty", ""] == 1
    with socket.socket() as probe:  # the page has gone with the block
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_page_shows_what_was_counted_and_measured() -> None:
    port = free_port()
    with telemetry.setup("transformer", metrics_port=port) as metrics:
        metrics = metrics
        metrics.queue_waited("transformer", 0.25)
        metrics.stage_ran("transformer", 3.0)
        metrics.transferred("local", 1000, 0.01)
        metrics.transferred("local", 500, 0.01)
        metrics.redelivered("phase1")
        metrics.dead_lettered("transformer")
        metrics.checksum_failed("rpc")
        metrics.watch_arena(lambda: 64, 4096)
        metrics.watch_device_memory(lambda: 7)
        page = scrape(port)
    for name, label, value in [
        ("triptych_queue_wait_seconds_sum", "transformer", 0.25),
        ("triptych_stage_run_seconds_sum", "transformer", 3.0),
        ("triptych_stage_run_seconds_count", "transformer", 1),
        ("triptych_transfer_bytes_total", "local", 1500),
        ("triptych_transfer_seconds_count", "local", 2),
        ("triptych_redeliveries_total", "phase1", 1),
        ("triptych_dead_letters_total", "transformer", 1),
        ("triptych_checksum_failures_total", "rpc", 1),
        ("triptych_arena_used_bytes", "", 64),
        ("triptych_arena_size_bytes", "", 4096),
        ("triptych_device_memory_bytes", "", 7),
    ]:
        assert page[name, label] == value, name


def test_metrics_go_to_the_collector(exporting: Receiver) -> None:
    with telemetry.setup("controller") as metrics:
        metrics.watch_rings(lambda: [telemetry.RingDepth("request", 1, 0)])
        metrics.stage_ran("encoder", 1.0)
    assert {"queue_sizes", "queue_total_pending", "all_queues_empty", "triptych.stage.run"} <= exporting.metric_names


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(InvalidRequest, match="metrics_port"), telemetry.setup("controller", metrics_port=port):
        pass


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = f"metrics_port is {port}; accepted: a free port"
        with pytest.raises(InvalidRequest, match=message), telemetry.setup("controller", metrics_port=port):
            pass
