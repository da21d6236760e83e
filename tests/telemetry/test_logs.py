"""Log lines are JSON, carry the ids, and never a request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from triptych import telemetry
from triptych.errors import InvalidRequest
from triptych.telemetry.logs import JsonFormatter
from triptych.v1.job_pb2 import GenerationRequest

PROMPT = "a big red circle"


class Lines:
    """A logger that writes to memory through our formatter."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.log = logging.Logger("test")
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonFormatter("transformer"))
        self.log.addHandler(handler)

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def lines() -> Lines:
    return Lines()


async def test_lines_carry_the_ids_in_tasks_and_threads(lines: Lines, tmp_path: Path) -> None:
    async def other() -> None:
        lines.log.info("in a task")

    trace_file = str(tmp_path / "trace.jsonl")
    with telemetry.setup("transformer", trace_file=trace_file), telemetry.span("claim phase1"):
        trace_id = telemetry.trace_id()
        with telemetry.log_context(job_id="job-7", rank=3), telemetry.log_context(room_id=9, rank=None):
            await asyncio.create_task(other())
            await asyncio.to_thread(lines.log.warning, "in a %s", "thread", extra={"step": 2})
    lines.log.info("after\nthe job")
    first, second, last = lines.all()
    ids = {"job_id": "job-7", "rank": 3, "room_id": 9, "trace_id": trace_id}
    assert ids.items() <= first.items()
    assert {**ids, "step": 2, "message": "in a thread", "level": "WARNING"}.items() <= second.items()
    time = last.pop("time")
    assert last == {"level": "INFO", "logger": "test", "service": "transformer", "message": "after\nthe job"}
    assert abs(datetime.fromisoformat(time).timestamp() - datetime.now().timestamp()) < 60


def test_requests_are_never_formatted(lines: Lines) -> None:
    request = GenerationRequest(prompt=PROMPT)
    lines.log.info("got %s", request)
    lines.log.info("got %(request)s", {"request": request})
    lines.log.info(request)
    lines.log.info("got %s and %s", [request], ({"request": request},))
    lines.log.info("got", extra={"request": request, "requests": [request]})
    written = lines.all()
    assert len(written) == 5
    assert PROMPT not in json.dumps(written)
    assert written[0]["message"] == "got <GenerationRequest>"
    assert written[4]["request"] == "<GenerationRequest>"


def test_an_exception_stays_on_one_line_without_what_libraries_say(lines: Lines) -> None:
    try:
        try:
            raise ValueError(f"`prompt` can't be {PROMPT}")
        except ValueError as error:
            raise InvalidRequest(f"parameters.{PROMPT}", PROMPT, "a number") from error
    except InvalidRequest:
        lines.log.exception("stage failed")
    (line,) = lines.all()
    assert "ValueError\n" in line["exception"]
    assert line["exception"].endswith("InvalidRequest: parameters can't be used; accepted: a number")
    assert __file__ in line["exception"]
    assert PROMPT not in json.dumps(line)
