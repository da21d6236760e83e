"""One trace per job, metrics and structured logs. Everything is off, and free, until `setup` turns it on.

Call `setup` before opening channels or starting servers: interceptors look at it when they are made.
"""

from __future__ import annotations

from triptych.telemetry.calls import client_interceptors, mark_failed, server_interceptors
from triptych.telemetry.controller_metrics import ControllerMetrics, Outcome, RingDepth, Task, kind_name
from triptych.telemetry.exporters import setup
from triptych.telemetry.logs import log_context, setup_logging
from triptych.telemetry.metrics import Metrics
from triptych.telemetry.resource import identify
from triptych.telemetry.text_encoder_metrics import TextEncoderMetrics
from triptych.telemetry.tracing import annotate, event, extract, inject, link, record, reserve, span, trace_id, within
from triptych.telemetry.worker_metrics import WorkerMetrics

__all__ = [
    "ControllerMetrics",
    "Metrics",
    "Outcome",
    "RingDepth",
    "Task",
    "TextEncoderMetrics",
    "WorkerMetrics",
    "annotate",
    "client_interceptors",
    "event",
    "extract",
    "identify",
    "inject",
    "kind_name",
    "link",
    "log_context",
    "mark_failed",
    "record",
    "reserve",
    "server_interceptors",
    "setup",
    "setup_logging",
    "span",
    "trace_id",
    "within",
]
