"""Structured logs: one JSON object per line, with the ids that find a job again.

Keys: `time`, `level`, `logger`, `service`, `message`, then what `log_context` has bound (`job_id`, `room_id`, `rank`),
`trace_id` inside a span, what the call gave as `extra`, and `exception`. No line holds a request: messages of protobuf
are written as their type's name, and so is every `extra` that isn't a plain value.
Exceptions are written with their frames and their `errors.public_text`: what a library says may quote its input.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from triptych.errors import public_text
from triptych.telemetry import native
from triptych.telemetry.tracing import trace_id

_bound: ContextVar[Mapping[str, object] | None] = ContextVar("triptych_log_context", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; the others came as `extra`."""


@contextmanager
def log_context(**ids: str | int | None) -> Iterator[None]:
    """Put `ids` on every line logged in this block, in this task and the tasks and `to_thread` calls that it starts."""
    token = _bound.set({**(_bound.get() or {}), **{key: value for key, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def setup_logging(service: str) -> None:
    """Make the process, native libraries included, write JSON lines to standard error and nothing else.

    Call it once, before native libraries are loaded.
    """
    handler = logging.StreamHandler(native.capture(service))
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level="INFO", force=True)
    logging.captureWarnings(True)
    warnings.formatwarning = _place_of  # what libraries warn of may quote their input, too


def _place_of(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__} at {filename}:{lineno}"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON without line breaks."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "service": self._service,
            "message": _message(record),
            **(_bound.get() or {}),
        }
        if trace := trace_id():
            line["trace_id"] = trace
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line.setdefault(key, value)
        if record.exc_info:
            line["exception"] = _described(record.exc_info[1])
        return json.dumps(line, default=_type_name, ensure_ascii=False)


def _described(error: BaseException | None) -> str:
    """An exception's causes and itself, oldest first: where each was raised, and what may be said of it."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join("".join(traceback.format_tb(link.__traceback__)) + public_text(link) for link in reversed(chain))


def _message(record: logging.LogRecord) -> str:
    text = str(_shown(record.msg))
    args = record.args
    if not args:
        return text
    return text % (_shown(args) if isinstance(args, dict) else tuple(_shown(arg) for arg in args))


def _shown(value: Any) -> Any:
    if hasattr(value, "DESCRIPTOR"):  # a message of protobuf, which might be a request
        return _type_name(value)
    if type(value) is dict:
        return {key: _shown(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_shown(item) for item in value)
    return value


def _type_name(value: object) -> str:
    return f"<{type(value).__name__}>"
