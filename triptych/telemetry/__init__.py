"""One trace per job, metrics and structured logs. Everything is off, and free, until `setup` turns it on.

Call `setup` before opening channels or starting servers: interceptors look at it when they are made.
"""

from __future__ import annotations

from triptych.telemetry.exporters import setup
from triptych.telemetry.logs import log_context, setup_logging
from triptych.telemetry.metrics import Metrics, RingDepth
from triptych.telemetry.resource import identify
from triptych.telemetry.tracing import (
    client_interceptors,
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
    "client_interceptors",
    "extract",
    "identify",
    "inject",
    "log_context",
    "mark_failed",
    "server_interceptors",
    "setup",
    "setup_logging",
    "span",
    "trace_id",
]
