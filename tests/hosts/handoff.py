"""What a job's hand-offs moved and took, by the spans of its trace."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.v1.job_pb2 import Job

HAND_OFF = ("room.store", "room.fetch")


@dataclass(frozen=True)
class HandOff:
    """All hand-offs of one job."""

    room_bytes: int
    """Of the rooms that were fetched."""
    movers: Counter[str]
    """Fetches by mover and protocol, as `mooncake/tcp`."""
    seconds: float
    """To store and to fetch them."""
    job_s: float
    """From the job's acceptance to its end."""

    @property
    def share(self) -> float:
        """Of the job's time."""
        return self.seconds / self.job_s


def of_job(trace_file: Path, job: Job) -> HandOff:
    """Read them from the file that all processes of a fleet append to."""
    spans = [span for span in _spans(trace_file) if span["traceId"] == job.trace_id and span["name"] in HAND_OFF]
    fetched = [found for span in spans if "triptych.mover" in (found := _attributes(span))]
    return HandOff(
        room_bytes=sum(int(span["triptych.size_bytes"]) for span in fetched),
        movers=Counter(f"{span['triptych.mover']}/{span['triptych.protocol']}" for span in fetched),
        seconds=sum(int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) for span in spans) / 1e9,
        job_s=(job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e9,
    )


def _spans(trace_file: Path) -> list[dict[str, Any]]:
    requests = [json.loads(line) for line in trace_file.read_text().splitlines()]
    resources = [resource for request in requests for resource in request["resourceSpans"]]
    return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]


def _attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in span.get("attributes", ())}
