"""The check of histories finds what is planted, and nothing in a history that is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.history import Call, Event, Seen, check
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DENOISING,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
)

QUEUED = Seen("job-1", "r-1", JOB_STATE_QUEUED)
RUNNING = Seen("job-1", "r-1", JOB_STATE_DENOISING, generation=1)
DONE = Seen("job-1", "r-1", JOB_STATE_SUCCEEDED, generation=1, digest="aa")
CANCELLED = Seen("job-1", "r-1", JOB_STATE_CANCELLED, generation=1)

CREATE = Event("a", Call.CREATE, 0.0, 1.0, "r-1", (QUEUED,))
RIGHT = [
    CREATE,
    Event("b", Call.CREATE, 0.5, 4.0, "r-1", (RUNNING,)),
    Event("a", Call.GET, 2.0, 3.0, "job-1", (RUNNING,)),
    Event("a", Call.LIST, 2.0, 3.0, "", (RUNNING,)),
    Event("a", Call.GET, 4.0, 9.0, "job-1", (RUNNING,)),
    Event("a", Call.WATCH, 2.0, 2.1, "job-1", (RUNNING,), stream=1),
    Event("a", Call.WATCH, 2.0, 6.0, "job-1", (DONE,), stream=1),
    Event("b", Call.GET, 5.0, 5.5, "job-1", (DONE,)),
    Event("b", Call.CANCEL, 7.0, 7.5, "job-1", (DONE,)),
    Event("b", Call.DOWNLOAD, 7.0, 8.0, "job-1", digest="aa"),
    Event("b", Call.GET, 7.0, None, "job-1", error="Unavailable"),
]


def rules(events: list[Event]) -> set[str]:
    return {violation.rule for violation in check(events)}


def test_a_history_that_is_right() -> None:
    assert check(RIGHT) == []


def test_calls_that_overlap_are_in_no_order() -> None:
    late = Event("c", Call.GET, 5.4, 20.0, "job-1", (RUNNING,))
    assert check([*RIGHT, late]) == []


PLANTED = [
    ("over", Event("c", Call.GET, 10.0, 11.0, "job-1", (RUNNING,))),
    ("over", Event("c", Call.GET, 0.1, 11.0, "job-1", (CANCELLED,))),
    ("over", Event("c", Call.LIST, 10.0, 11.0, "", (RUNNING,))),
    ("generation", Event("c", Call.GET, 10.0, 11.0, "job-1", (replace(DONE, generation=0),))),
    ("one result", Event("c", Call.GET, 0.1, 11.0, "job-1", (replace(DONE, digest="bb"),))),
    ("one result", Event("c", Call.DOWNLOAD, 0.1, 11.0, "job-1", digest="bb")),
    ("missing", Event("c", Call.GET, 2.0, 3.0, "job-1", is_missing=True)),
    ("missing", Event("c", Call.DOWNLOAD, 2.0, 3.0, "job-1", is_missing=True)),
    ("missing", Event("c", Call.LIST, 2.0, 3.0)),
    ("cancelled", Event("c", Call.CANCEL, 0.1, 11.0, "job-1", (RUNNING,))),
    ("request id", Event("c", Call.CREATE, 0.1, 11.0, "r-1", (replace(QUEUED, job_id="job-2"),))),
    ("request id", Event("c", Call.GET, 0.1, 11.0, "job-1", (replace(DONE, request_id="r-2"),))),
    ("stream", Event("a", Call.WATCH, 2.0, 9.0, "job-1", (DONE,), stream=1)),
]


@pytest.mark.parametrize(("rule", "planted"), PLANTED, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(PLANTED)])
def test_each_planted_violation_is_found(rule: str, planted: Event) -> None:
    assert rule in rules([*RIGHT, planted])


def test_a_cancelled_job_that_succeeds_later_is_found() -> None:
    events = [
        CREATE,
        Event("a", Call.CANCEL, 2.0, 3.0, "job-1", (CANCELLED,)),
        Event("b", Call.GET, 4.0, 5.0, "job-1", (DONE,)),
    ]
    assert rules(events) == {"over"}


def test_a_job_that_was_not_acknowledged_may_be_missing() -> None:
    unanswered = Event("a", Call.CREATE, 0.0, None, "r-9", error="Unavailable")
    early = Event("b", Call.LIST, 0.5, 0.9)
    assert check([unanswered, CREATE, early]) == []


def test_a_stream_that_goes_back_a_generation_is_found() -> None:
    back = Event("a", Call.WATCH, 2.0, 2.2, "job-1", (replace(RUNNING, generation=0),), stream=1)
    assert "stream" in rules([*RIGHT[:6], back])
