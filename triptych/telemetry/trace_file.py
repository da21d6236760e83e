"""Spans as OTLP JSON lines: one `ExportTraceServiceRequest` per line.

The format is that of the OpenTelemetry collector's file exporter, so other tools read it: camelCase names, ids in
hexadecimal, enums as numbers, 64-bit numbers as strings
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
Any number of processes may append to one file: each line is one `write` to a descriptor opened with O_APPEND, which
local file systems keep whole. NFS doesn't.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from triptych.errors import InvalidRequest

log = logging.getLogger(__name__)


class TraceFileExporter(SpanExporter):
    """Appends spans to a file. Raises InvalidRequest when it can't be opened."""

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InvalidRequest("trace_file", path, f"a file that can be written ({error.strerror})") from error
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans as one line. A full disk loses them with a warning; it never stops a job."""
        line = (json.dumps(_to_json(spans), separators=(",", ":")) + "\n").encode()
        try:
            written_bytes = os.write(self._descriptor, line)
        except OSError as error:
            log.warning("trace file %s: %s; a span is lost", self._path, error.strerror)
            return SpanExportResult.FAILURE
        if written_bytes < len(line):
            log.warning("trace file %s: the last line is cut off", self._path)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _to_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    # protobuf's own JSON writes bytes in base64, where OTLP wants hexadecimal for ids.
    request: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in request.get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for holder in (span, *span.get("links", ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in holder:
                            holder[key] = base64.b64decode(holder[key]).hex()
    return request
