"""The Prometheus page and metrics over OTLP."""

from __future__ import annotations

import os
import socket

import pytest

from tests.fleet.processes import free_port
from tests.telemetry.pages import scrape, value
from tests.telemetry.receiver import Receiver
from triptych import telemetry
from triptych.errors import InvalidRequest
from triptych.telemetry.devices import open_device
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED, JOB_STATE_DENOISING
from triptych.v1.worker_pb2 import WORKER_STATE_BUSY


def test_the_page_shows_rings_as_they_are_now() -> None:
    port, ready = free_port(), {"request": 2, "phase1": 1, "phase2": 0}
    with telemetry.setup("controller", metrics_port=port) as measured:
        metrics = telemetry.ControllerMetrics(measured.meter)
        metrics.watch_rings(lambda: [telemetry.RingDepth(ring, count, 3) for ring, count in ready.items()])
        page = scrape(port)
        assert {ring: value(page, "queue_sizes", ring=ring) for ring in ready} == ready
        assert {ring: value(page, "queue_in_flight", ring=ring) for ring in ready} == dict.fromkeys(ready, 3)
        assert value(page, "queue_total_pending") == 3
        assert value(page, "all_queues_empty") == 0
        ready.update(dict.fromkeys(ready, 0))
        page = scrape(port)
        assert value(page, "queue_total_pending") == 0
        assert value(page, "all_queues_empty") == 1
    with socket.socket() as probe:  # the page has gone with the block
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_page_shows_what_a_worker_counted_and_measured() -> None:
    port = free_port()
    with telemetry.setup("transformer", metrics_port=port) as measured:
        metrics = telemetry.WorkerMetrics(ROLE_TRANSFORMER, measured.meter)
        metrics.queue_waited(0.25)
        metrics.stage_ran(3.0)
        metrics.transferred("local", 1000, 0.01)
        metrics.transferred("local", 500, 0.01)
        metrics.redelivered()
        metrics.quarantined()
        metrics.checksum_failed("rpc")
        metrics.watch_arena(lambda: 64, 4096)
        metrics.watch_device_memory(lambda: 7)
        page = scrape(port)
    for name, labels, expected in [
        ("triptych_queue_wait_seconds_sum", {"stage": "transformer"}, 0.25),
        ("triptych_stage_run_seconds_sum", {"stage": "transformer"}, 3.0),
        ("triptych_stage_run_seconds_count", {"stage": "transformer"}, 1),
        ("triptych_transfer_bytes_total", {"mover": "local"}, 1500),
        ("triptych_transfer_bytes_total", {"mover": "mooncake"}, 0),
        ("triptych_transfer_seconds_count", {"mover": "local"}, 2),
        ("triptych_redeliveries_total", {"ring": "phase1"}, 1),
        ("triptych_quarantines_total", {"stage": "transformer"}, 1),
        ("triptych_checksum_failures_total", {"mover": "rpc"}, 1),
        ("triptych_arena_used_bytes", {}, 64),
        ("triptych_arena_size_bytes", {}, 4096),
        ("triptych_device_memory_bytes", {}, 7),
    ]:
        assert value(page, name, **labels) == expected, name


def test_the_page_shows_what_a_controller_counted_and_measured() -> None:
    port, jobs = free_port(), {JOB_STATE_DENOISING: 4}
    with telemetry.setup("controller", metrics_port=port) as measured:
        metrics = telemetry.ControllerMetrics(measured.meter)
        metrics.job_accepted()
        metrics.job_ended("succeeded", 700.0, "")
        metrics.attempt_failed("transformer", ATTEMPT_KIND_WORKER_DIED)
        metrics.dead_lettered("transformer")
        metrics.background_failed("prune")
        metrics.reconciled("lease")
        metrics.watch_jobs(jobs)
        metrics.watch_journal(lambda: 6)
        metrics.watch_workers(lambda: {("encoder", WORKER_STATE_BUSY): 2})
        page = scrape(port)
    for name, labels, expected in [
        ("triptych_jobs_accepted_total", {}, 1),
        ("triptych_jobs_ended_total", {"outcome": "succeeded"}, 1),
        ("triptych_job_duration_seconds_bucket", {"outcome": "succeeded", "le": "600.0"}, 0),
        ("triptych_job_duration_seconds_bucket", {"outcome": "succeeded", "le": "1200.0"}, 1),
        ("triptych_attempts_failed_total", {"role": "transformer", "kind": "worker_died"}, 1),
        ("triptych_dead_letters_total", {"stage": "transformer"}, 1),
        ("triptych_background_failures_total", {"task": "prune"}, 1),
        ("triptych_reconciliations_total", {"what": "lease"}, 1),
        ("triptych_jobs_unfinished", {"state": "denoising"}, 4),
        ("triptych_journal_full_total", {}, 6),
        ("triptych_workers", {"role": "encoder", "state": "busy"}, 2),
    ]:
        assert value(page, name, **labels) == expected, name


def test_counters_and_gauges_are_there_before_anything_happens() -> None:
    """A rate needs the value before the first event, and an alert on missing workers a zero."""
    port = free_port()
    with telemetry.setup("controller", metrics_port=port) as measured:
        metrics = telemetry.ControllerMetrics(measured.meter)
        metrics.watch_jobs({})
        metrics.watch_workers(dict)
        telemetry.WorkerMetrics(ROLE_TRANSFORMER, measured.meter)
        page = scrape(port)
    for name, labels in [
        ("triptych_jobs_accepted_total", {}),
        *(
            ("triptych_jobs_ended_total", {"outcome": outcome})
            for outcome in ("succeeded", "failed", "dead_letter", "cancelled", "expired")
        ),
        *(("triptych_dead_letters_total", {"stage": role}) for role in ("encoder", "transformer", "decoder")),
        ("triptych_attempts_failed_total", {"role": "decoder", "kind": "out_of_memory"}),
        ("triptych_background_failures_total", {"task": "tick"}),
        ("triptych_reconciliations_total", {"what": "worker"}),
        ("triptych_jobs_unfinished", {"state": "queued"}),
        ("triptych_workers", {"role": "decoder", "state": "quarantined"}),
        ("triptych_redeliveries_total", {"ring": "phase1"}),
        ("triptych_quarantines_total", {"stage": "transformer"}),
        ("triptych_checksum_failures_total", {"mover": "mooncake"}),
        ("triptych_worker_busy_seconds_total", {"role": "transformer"}),
    ]:
        assert value(page, name, **labels) == 0, name


def test_a_worker_is_busy_also_while_its_job_isnt_over() -> None:
    port = free_port()
    with telemetry.setup("transformer", metrics_port=port) as measured:
        metrics = telemetry.WorkerMetrics(ROLE_TRANSFORMER, measured.meter)

        def busy_s() -> float:
            return value(scrape(port), "triptych_worker_busy_seconds_total", role="transformer")

        with metrics.busy():
            first_s = busy_s()
            second_s = busy_s()
        after_s = busy_s()
        assert 0 < first_s < second_s < after_s
        assert busy_s() == after_s
        with metrics.busy():
            assert busy_s() > after_s


def test_a_process_shows_itself_under_the_conventions_names() -> None:
    port = free_port()
    with telemetry.setup("controller", metrics_port=port) as measured:
        measured.watch_process()
        page = scrape(port)
        fds = value(page, "process_unix_file_descriptor_count")
        with open(os.devnull), open(os.devnull):
            assert value(scrape(port), "process_unix_file_descriptor_count") == fds + 2
    assert value(page, "process_cpu_time_seconds_total", cpu_mode="user") > 0
    assert value(page, "process_cpu_time_seconds_total", cpu_mode="system") > 0
    assert 2**20 < value(page, "process_memory_usage_bytes") < value(page, "process_memory_virtual_bytes")
    assert value(page, "process_thread_count") >= 2
    assert value(page, "process_uptime_seconds") > 0


def test_a_machine_without_a_device_has_no_metrics_of_one() -> None:
    port = free_port()
    with telemetry.setup("transformer", metrics_port=port) as measured:
        metrics = telemetry.WorkerMetrics(ROLE_TRANSFORMER, measured.meter)
        metrics.watch_device("")
        metrics.watch_device("5e9a0c4e-0000-4000-8000-000000000000")
        assert not [name for name, _labels in scrape(port) if name.startswith("hw_")]
    assert open_device("5e9a0c4e-0000-4000-8000-000000000000") is None


def test_metrics_go_to_the_collector(exporting: Receiver) -> None:
    with telemetry.setup("controller") as measured:
        metrics = telemetry.ControllerMetrics(measured.meter)
        metrics.watch_rings(lambda: [telemetry.RingDepth("request", 1, 0)])
        metrics.job_accepted()
    names = {"queue_sizes", "queue_total_pending", "all_queues_empty", "triptych.jobs.accepted"}
    assert names <= exporting.metric_names


def test_histograms_point_to_traces(exporting: Receiver) -> None:
    with telemetry.setup("transformer") as measured:
        metrics = telemetry.WorkerMetrics(ROLE_TRANSFORMER, measured.meter)
        with telemetry.span("stage.run"):
            trace_id, traceparent = telemetry.trace_id(), telemetry.inject()
            metrics.stage_ran(1.0)
        telemetry.ControllerMetrics(measured.meter).job_ended("succeeded", 2.0, traceparent)
    for name in ("triptych.stage.run", "triptych.job.duration"):
        assert exporting.exemplar_traces("transformer", name) == {trace_id}, name


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
