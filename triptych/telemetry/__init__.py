"""One trace per job, metrics and structured logs. Everything is off, and free, until `setup` turns it on.

    with telemetry.setup("transformer", trace_file=config.trace_file, metrics_port=config.metrics_port) as seen:
        telemetry.setup_logging("transformer")
        ...
        parent = telemetry.extract(dispatch.traceparent)
        with telemetry.span("queue.wait", parent=parent, start_s=published, job_id=job):
            pass
        with (
            telemetry.log_context(job_id=job, rank=rank),
            telemetry.span("claim phase1", kind="consumer", parent=parent, job_id=job, rank=rank),
        ):
            with telemetry.span("stage.run", job_id=job) as run:
                run.add_event("step", {"step": 1, "step_count": 8})
            with telemetry.span("publish phase2", kind="producer", job_id=job):
                dispatch.traceparent = telemetry.inject()
        seen.metrics.stage_ran("transformer", seconds)

Call `setup` before opening channels or starting servers: interceptors look at it when they are made.
"""

from __future__ import annotations

from triptych.telemetry.exporters import Telemetry, setup
from triptych.telemetry.logs import log_context, setup_logging
from triptych.telemetry.metrics import Metrics, RingDepth
from triptych.telemetry.native import capture as capture_native
from triptych.telemetry.tracing import (
    client_interceptors,
    enabled,
    extract,
    inject,
    mark_failed,
    server_interceptors,
    span,
    trace_id,
)

__all__ = [
    "Metrics",
    "RingDepth",
    "Telemetry",
    "capture_native",
    "client_interceptors",
    "enabled",
    "extract",
    "inject",
    "log_context",
    "mark_failed",
    "server_interceptors",
    "setup",
    "setup_logging",
    "span",
    "trace_id",
]
