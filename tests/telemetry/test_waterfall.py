"""The waterfall that `triptych trace` draws."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from triptych import telemetry
from triptych.errors import InvalidRequest, NotFound
from triptych_client.commands.trace import collapsed, draw, lines, read

TRACE = "0af7651916cd43dd8448eb211c80319c"
START_NS = 1_700_000_000_000_000_000

SNAPSHOT = """\
service              span                                                   time
triptych-client      generate              █████████████████████████████  1.00 s
triptych-controller   CreateJob            ██▉                            100 ms
triptych-encoder 1     queue.wait           ▐██▎                          100 ms
triptych-encoder 1     claim request            ▕███████████▍             400 ms
triptych-encoder 1      stage.run ✗                ▐█████▌                200 ms
trace 0af7651916cd43dd8448eb211c80319c · spans: 5, services: 3 · 1.00 s"""


def line(service: str, name: str, span: int, parent: int, start_ms: int, end_ms: int, **more: Any) -> str:
    """A line of a trace file, in the form that the OTLP specification gives."""
    body = {
        "traceId": TRACE,
        "spanId": f"{span:016x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(START_NS + start_ms * 10**6),
        "endTimeUnixNano": str(START_NS + end_ms * 10**6),
        **({"parentSpanId": f"{parent:016x}"} if parent else {}),
        **more,
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [body]}]}]}) + "\n"


def attributes(job: str, rank: int) -> list[dict[str, Any]]:
    return [
        {"key": "triptych.job_id", "value": {"stringValue": job}},
        {"key": "triptych.rank", "value": {"intValue": str(rank)}},
    ]


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    mine, job1 = attributes("job-1", 1), "job-1"
    path.write_text(
        line("triptych-encoder", "stage.run", 5, 4, 300, 500, attributes=mine, status={"code": 2})
        + line("triptych-encoder", "queue.wait", 3, 2, 50, 150, attributes=mine)
        + line("triptych-controller", "/triptych.v1.GenerationService/CreateJob", 2, 1, 0, 100)
        + line("other", "claim", 9, 0, 0, 9000, traceId="f" * 32, attributes=attributes(job1 + "0", 2))
        + line("triptych-encoder", "claim request", 4, 2, 200, 600, attributes=mine)
        + line("triptych-client", "generate", 1, 0, 0, 1000, attributes=mine[:1])
    )
    return path


def drawn(path: Path, wanted: str, *, whole: bool = True, width: int = 80) -> str:
    trace = read(path, wanted)
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(draw(trace if whole else collapsed(trace), "utf-8"))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(row.rstrip() for row in console.file.getvalue().rstrip().splitlines())


def test_a_time_of_0_is_left_out(tmp_path: Path) -> None:
    """As JSON of protobuf does with every field that is 0."""
    whole = json.loads(line("other", "old", 1, 0, 0, 0))
    span = whole["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    del span["startTimeUnixNano"], span["endTimeUnixNano"]
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(whole) + "\n")
    ((_depth, found),) = read(path, TRACE).spans
    assert (found.start_ns, found.end_ns) == (0, 0)


@pytest.mark.parametrize("wanted", ["job-1", TRACE, TRACE.upper()])
def test_snapshot(trace_file: Path, wanted: str) -> None:
    assert drawn(trace_file, wanted) == SNAPSHOT


def test_a_collapsed_trace_fits_a_screen_and_tells_what_failed(trace_file: Path) -> None:
    said = {"code": 2, "message": "it was silent for 10 s"}
    with trace_file.open("a") as file:
        for number in range(300):
            start_ms = 600 + number
            end_ms = start_ms + (1 if number % 2 else 20)
            file.write(line("triptych-encoder", f"span {number}", 100 + number, 2, start_ms, end_ms))
        lost = {"attributes": attributes("job-1", 3), "status": said}
        file.write(line("triptych-controller", "attempt decoder", 500, 2, 700, 700, **lost))
    picture = drawn(trace_file, "job-1", whole=False, width=120)
    rows = picture.splitlines()
    assert len(rows) <= 40
    assert rows[-2] == "✗ attempt decoder (rank 3): it was silent for 10 s"
    assert sum("attempt decoder ✗" in row for row in rows) == 1
    for name in ("generate", "CreateJob", "queue.wait", "claim request", "stage.run ✗"):
        assert name in picture
    left_out = 306 - (len(rows) - 3)  # the columns, the failure, the notes
    assert f"spans: 306, services: 3 · 1.00 s · short ones left out: {left_out} (--all draws them)" in rows[-1]
    assert len(drawn(trace_file, "job-1", width=120).splitlines()) == 309


def test_nothing_is_left_out_where_nothing_is_short(trace_file: Path) -> None:
    assert drawn(trace_file, "job-1", whole=False) == SNAPSHOT


def test_a_half_written_line_is_skipped(trace_file: Path) -> None:
    whole = trace_file.read_text()
    with trace_file.open("a") as file:
        file.write(line("triptych-decoder", "claim phase2", 6, 1, 700, 900, attributes=attributes("job-1", 3))[:-70])
    picture = drawn(trace_file, "job-1")
    assert picture.startswith(SNAPSHOT)
    assert picture.endswith("unreadable lines skipped: 1")
    trace_file.write_text(whole[:-1])  # only the newline is missing
    assert drawn(trace_file, "job-1") == SNAPSHOT


def test_a_span_whose_parent_is_missing_is_still_shown(trace_file: Path) -> None:
    rows = trace_file.read_text().splitlines(keepends=True)
    trace_file.write_text("".join(row for row in rows if 'CreateJob"' not in row))
    assert "claim request" in drawn(trace_file, "job-1")


@pytest.mark.parametrize("wanted", ["job-2", "obj", "e" * 32, "stringValue"])
def test_a_job_that_is_not_there_is_named(trace_file: Path, wanted: str) -> None:
    with pytest.raises(NotFound, match=f"no job and no trace '{wanted}' in .*trace.jsonl"):
        read(trace_file, wanted)


def test_bad_arguments_are_named(trace_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"trace_file is .*No such file"):
        read(tmp_path / "missing", "job-1")
    with pytest.raises(InvalidRequest, match="job is ''"):
        read(trace_file, "")


def test_what_the_exporter_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with telemetry.setup("triptych-client", trace_file=str(path)):
        with telemetry.span("generate", kind="client", job_id="job-1"), telemetry.span("inner"):
            pass
        with telemetry.span("generate", kind="client", job_id="job-2"):
            pass
    picture = drawn(path, "job-1")
    assert picture.count("generate") == 1
    assert picture.count("inner") == 1
    assert "spans: 2, services: 1" in picture


def test_a_large_file_is_searched_quickly(trace_file: Path) -> None:
    wanted = trace_file.read_text()
    other = line("other", "stage.run", 7, 8, 0, 1, traceId="e" * 32, attributes=attributes("job-3", 4))
    with trace_file.open("w") as file:
        for _ in range(100_000):
            file.write(other)
        file.write(wanted)
    started_s = time.process_time()
    assert drawn(trace_file, "job-1") == SNAPSHOT
    assert time.process_time() - started_s < 5


def test_a_beginning_that_no_other_has_is_enough(trace_file: Path) -> None:
    assert drawn(trace_file, TRACE[:8]) == SNAPSHOT
    assert drawn(trace_file, "job-1") == SNAPSHOT  # not job-10's
    assert len(read(trace_file, "job-10").spans) == 1
    with pytest.raises(InvalidRequest, match="accepted: more of the id: job-1, job-10 begin so"):
        read(trace_file, "job-")


def test_a_pipe_gets_every_span_as_a_line(trace_file: Path) -> None:
    cells = list(lines(read(trace_file, "job-1")))
    assert cells[0] == ("triptych-client", "", "generate", "0 µs", "1.00 s", "", TRACE)
    assert cells[4] == ("triptych-encoder", "1", "...stage.run", "300 ms", "200 ms", "failed", TRACE)


def test_names_of_others_are_shown_and_not_obeyed(trace_file: Path) -> None:
    with trace_file.open("a") as file:
        file.write(line("e\x1b]0;x\x07vil", "[red]\x1b[2J", 6, 1, 0, 1, attributes=attributes("job-1", 1)))
    console = Console(width=80, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(draw(read(trace_file, "job-1"), "ascii"))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue()
    assert "[red]\\x1b[2J" in console.file.getvalue()
