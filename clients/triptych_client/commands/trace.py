"""`triptych trace`: a job's trace from a trace file (`--trace-file`), as a waterfall for the terminal.

The file may be large and may still be written to: it is read line by line, twice, and only lines that mention the
job or its trace are parsed. A line that can't be parsed (the last one, half written) is skipped and counted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from triptych.errors import InvalidRequest, NotFound
from triptych_client.job_states import ambiguous
from triptych_client.tables import is_terminal
from triptych_client.terminal import spelled, visible

BAR_SHARE_MIN = 0.008
"""Shortest bar as a share of the whole, so that a span of microseconds is still seen."""
SHORT_SHARE = 0.01
"""A span that takes less of the whole is left out unless it failed, or others in it are shown."""
COLLAPSED_ROWS_MAX = 32
"""Rows of a collapsed trace: with what stands around them they fit a terminal of 40 lines. Failures come on top."""
FAILURES_SHOWN_MAX = 5
"""Sentences below the waterfall that say what went wrong: the last ones."""
SPANS_SHOWN_MAX = 500
"""Rows drawn at most: more than a job makes, few enough to scroll through."""
COLORS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")

_STATUS_ERROR = 2  # Status.StatusCode.STATUS_CODE_ERROR of opentelemetry.proto.trace.v1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the job and the file."""
    parser.add_argument("job", metavar="JOB", help="job id or trace id, or the beginning of one")
    parser.add_argument("--all", action="store_true", help="draw short spans, too")
    parser.add_argument("--trace-file", required=True, metavar="FILE", help="what the fleet's --trace-file wrote")


def run(args: argparse.Namespace) -> None:
    """Draw the trace that the file holds; in a pipe, print its spans."""
    trace = read(args.trace_file, args.job)
    if is_terminal():
        console = Console(highlight=False)
        console.print(draw(trace if args.all else collapsed(trace), console.encoding))
        return
    for cells in lines(trace):
        print("\t".join(map(visible, cells)))


@dataclass(frozen=True)
class Span:
    """One span of the file. Times are Unix nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    error: str
    """What went wrong, in a sentence; empty where nothing did, or where it isn't said."""
    attributes: dict[str, str]


@dataclass
class _Reader:
    path: str
    unreadable: set[int] = field(default_factory=set)

    def spans(self, needles: Iterable[str]) -> Iterator[Span]:
        """The spans of all lines that contain one of `needles`."""
        patterns = [needle.encode() for needle in needles]
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file):
                    if any(pattern in line for pattern in patterns):
                        yield from self._parse(number, line)
        except OSError as error:
            raise InvalidRequest(
                "trace_file", self.path, f"a file written by --trace-file ({error.strerror})"
            ) from error

    def _parse(self, number: int, line: bytes) -> list[Span]:
        try:
            return list(_spans_of(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.unreadable.add(number)
            return []


@dataclass(frozen=True)
class Trace:
    """A job's spans, parents before children, each with its depth."""

    spans: Sequence[tuple[int, Span]]
    unreadable_count: int
    """Lines of the file that could not be parsed."""
    left_out_count: int = 0
    """Spans that `collapsed` has left out."""

    @property
    def start_ns(self) -> int:
        """When the first span began."""
        return min(span.start_ns for _depth, span in self.spans)

    @property
    def total_ns(self) -> int:
        """From the first begin to the last end."""
        return max(1, max(span.end_ns for _depth, span in self.spans) - self.start_ns)


def read(trace_file: str | os.PathLike[str], wanted: str) -> Trace:
    """The trace of a job, by its job id or its trace id (32 hexadecimal digits), or a beginning that no other has.

    Raises InvalidRequest when the file can't be read or several begin so, NotFound when it has no such job or trace.
    """
    reader = _Reader(os.fspath(trace_file))
    wanted = wanted.strip()
    if not wanted:
        raise InvalidRequest("job", wanted, "a job id or a trace id")
    traces: dict[str, set[str]] = {}
    for span in reader.spans({wanted, wanted.lower()}):
        job_id = span.attributes.get("triptych.job_id", "")
        for name in (job_id if job_id.startswith(wanted) else "", span.trace_id):
            if name.startswith((wanted, wanted.lower())):
                traces.setdefault(name, set()).add(span.trace_id)
    trace_ids = _chosen(traces, wanted)
    spans = [span for span in reader.spans(trace_ids) if span.trace_id in trace_ids]
    if not spans:
        raise NotFound(f"no job and no trace {wanted!r} in {reader.path}; was the fleet started with --trace-file?")
    return Trace(tuple(_in_order(spans)), len(reader.unreadable))


def _chosen(traces: dict[str, set[str]], wanted: str) -> set[str]:
    """The traces of the job or trace that is called so, or else of the only one whose name begins so."""
    for name in (wanted, wanted.lower()):
        if name in traces:
            return traces[name]
    if len(traces) > 1:
        raise ambiguous(wanted, sorted(traces))
    return next(iter(traces.values()), set())


def _spans_of(request: dict[str, Any]) -> Iterator[Span]:
    for resource in request["resourceSpans"]:
        service = _attributes(resource["resource"]).get("service.name", "?")
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    trace_id=span["traceId"].lower(),
                    span_id=span["spanId"].lower(),
                    parent_id=span.get("parentSpanId", "").lower(),
                    service=service,
                    name=span["name"].rpartition("/")[2],  # gRPC's are /package.Service/Method
                    start_ns=int(span.get("startTimeUnixNano", 0)),  # JSON of protobuf leaves a 0 out
                    end_ns=int(span.get("endTimeUnixNano", 0)),
                    failed=span.get("status", {}).get("code", 0) == _STATUS_ERROR,
                    error=span.get("status", {}).get("message", ""),
                    attributes=_attributes(span),
                )


def _attributes(holder: dict[str, Any]) -> dict[str, str]:
    # An OTLP value is an object with one member that is named for its type: {"stringValue": "x"}.
    return {item["key"]: str(next(iter(item["value"].values()), "")) for item in holder.get("attributes", ())}


def _in_order(spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """Each span with its depth: parents before children, siblings by their start. Without recursion."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns, reverse=True):
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    stack = [(0, span) for span in children.get("", ())]
    while stack:
        depth, span = stack.pop()
        yield depth, span
        stack.extend((depth + 1, child) for child in children.get(span.span_id, ()))


def collapsed(trace: Trace) -> Trace:
    """The trace without short spans: those that failed, the longest others, and what they are parts of."""
    spans = {span.span_id: span for _depth, span in trace.spans}
    short_ns = trace.total_ns * SHORT_SHARE
    kept: set[str] = set()
    for span in sorted(spans.values(), key=lambda span: (not span.failed, span.start_ns - span.end_ns)):
        if not span.failed and span.end_ns - span.start_ns < short_ns:
            break
        wanted: set[str] = set()
        above: Span | None = span
        while above is not None and above.span_id not in kept | wanted:
            wanted.add(above.span_id)
            above = spans.get(above.parent_id)
        if span.failed or len(kept) + len(wanted) <= COLLAPSED_ROWS_MAX:
            kept |= wanted
    shown = tuple((depth, span) for depth, span in trace.spans if span.span_id in kept)
    return Trace(shown, trace.unreadable_count, len(trace.spans) - len(shown))


def lines(trace: Trace) -> Iterator[tuple[str, ...]]:
    """Every span as cells: service, rank, name (indented by its depth), begin, length, whether it failed, trace id."""
    for depth, span in trace.spans:
        yield (
            span.service,
            span.attributes.get("triptych.rank", ""),
            "." * depth + span.name,
            _duration(span.start_ns - trace.start_ns),
            _duration(span.end_ns - span.start_ns),
            "failed" if span.failed else "",
            span.trace_id,
        )


def draw(trace: Trace, encoding: str) -> RenderableType:
    """The trace as a waterfall, for a terminal of that encoding."""
    total_ns = trace.total_ns
    all_spans = [span for _depth, span in trace.spans]
    services = list(dict.fromkeys(span.service for span in sorted(all_spans, key=lambda span: span.start_ns)))
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    table.add_column("service", no_wrap=True)
    table.add_column("span", no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column("", ratio=3)
    table.add_column("time", justify="right", no_wrap=True)
    for depth, span in trace.spans[:SPANS_SHOWN_MAX]:
        color = COLORS[services.index(span.service) % len(COLORS)]
        rank = span.attributes.get("triptych.rank", "")
        begin = min((span.start_ns - trace.start_ns) / total_ns, 1 - BAR_SHARE_MIN)
        end = max((span.end_ns - trace.start_ns) / total_ns, begin + BAR_SHARE_MIN)
        name = " " * depth + spelled(span.name + (" ✗" if span.failed else ""), encoding)
        table.add_row(
            Text(spelled(f"{span.service} {rank}".strip(), encoding), style=color),
            Text(name, style="red" if span.failed else ""),
            Bar(1.0, begin, end, color=color),
            spelled(_duration(span.end_ns - span.start_ns), encoding),
        )
    notes = Text(spelled(_notes(trace, len(services)), encoding), style="dim")
    return Group(table, *(Text(spelled(one, encoding), style="red") for one in _failures(all_spans)), notes)


def _failures(spans: Sequence[Span]) -> list[str]:
    """What went wrong, for each span that says so."""
    failed = [span for span in spans if span.failed and span.error]
    ranks = [
        f" (rank {span.attributes['triptych.rank']})" if "triptych.rank" in span.attributes else "" for span in failed
    ]
    said = [f"✗ {span.name}{rank}: {span.error}" for span, rank in zip(failed, ranks, strict=True)]
    return said[-FAILURES_SHOWN_MAX:]


def _notes(trace: Trace, service_count: int) -> str:
    notes = [
        "trace " + ", ".join(sorted({span.trace_id for _depth, span in trace.spans})),
        f"spans: {len(trace.spans) + trace.left_out_count}, services: {service_count}",
        _duration(trace.total_ns),
    ]
    if len(trace.spans) > SPANS_SHOWN_MAX:
        notes.append(f"shown: the first {SPANS_SHOWN_MAX}")
    if trace.left_out_count:
        notes.append(f"short ones left out: {trace.left_out_count} (--all draws them)")
    if trace.unreadable_count:
        notes.append(f"unreadable lines skipped: {trace.unreadable_count}")
    return " · ".join(notes)


def _duration(duration_ns: int) -> str:
    for unit, unit_ns in (("s", 10**9), ("ms", 10**6)):
        if duration_ns >= unit_ns:
            digits = max(0, 3 - len(str(duration_ns // unit_ns)))
            return f"{duration_ns / unit_ns:.{digits}f} {unit}"
    return f"{duration_ns / 1000:.0f} µs"
