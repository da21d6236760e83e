"""The account finds what is planted: lost, doubled, invented, wrong, and ends that nobody asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.ledger import Account, settle
from tests.chaos.plan import Submission
from triptych.v1 import job_pb2
from triptych.v1.job_pb2 import Artifact, Attempt, Job

PLAIN = Submission(1, 0.0, 0, "a cat", 7, 32, 32, 4)
RIGHT_BITS = b"\x01" * 32


def job(state: int = job_pb2.JOB_STATE_SUCCEEDED, **fields: Any) -> Job:
    artifacts = [Artifact(sha256=RIGHT_BITS)] if state == job_pb2.JOB_STATE_SUCCEEDED else []
    return Job(**{"job_id": "job-1", "request_id": PLAIN.request_id, "state": state, "artifacts": artifacts, **fields})


def account(*jobs: Job, submission: Submission = PLAIN, success_count: int = 1) -> Account:
    return settle(
        jobs,
        {submission.request_id: submission},
        {submission.request_id: "job-1"},
        {submission.request_id: RIGHT_BITS.hex()},
        {"job-1": success_count},
    )


def test_a_right_account() -> None:
    found = account(job(attempts=[Attempt(reason="killed"), Attempt(reason="killed")]))
    assert (found.accepted, found.succeeded, found.redeliveries, found.violations) == (1, 1, 2, [])


@pytest.mark.parametrize(
    ("jobs", "success_count", "rule", "counted"),
    [
        ([], 1, "lost", "lost"),
        ([job(job_id="job-2")], 1, "lost", "lost"),
        ([job(), job(job_id="job-2")], 1, "doubled", "doubled"),
        ([job()], 2, "doubled", "doubled"),
        ([job(), job(job_id="job-2", request_id="chaos-2")], 1, "invented", ""),
        ([job(artifacts=[Artifact(sha256=b"\x02" * 32)])], 1, "bits", "wrong_bits"),
        ([job(artifacts=[])], 1, "bits", "wrong_bits"),
        ([job(job_pb2.JOB_STATE_DENOISING)], 0, "end", "lost"),
        ([job(job_pb2.JOB_STATE_FAILED, error="gave up after 40 attempts")], 0, "end", "lost"),
        ([job(job_pb2.JOB_STATE_CANCELLED)], 0, "end", "lost"),
        ([job(job_pb2.JOB_STATE_EXPIRED)], 0, "end", "lost"),
    ],
)
def test_each_planted_violation_is_found(jobs: list[Job], success_count: int, rule: str, counted: str) -> None:
    found = account(*jobs, success_count=success_count)
    assert rule in {violation.rule for violation in found.violations}
    assert not counted or getattr(found, counted) == 1


@pytest.mark.parametrize(
    ("state", "wish"),
    [
        (job_pb2.JOB_STATE_FAILED, {"is_refused": True}),
        (job_pb2.JOB_STATE_CANCELLED, {"cancel_after_s": 0.1}),
        (job_pb2.JOB_STATE_EXPIRED, {"deadline_s": 0.1}),
    ],
)
def test_ends_that_were_asked_for_are_right(state: int, wish: dict[str, Any]) -> None:
    assert account(job(state), submission=replace(PLAIN, **wish), success_count=0).violations == []


def test_a_job_that_asks_to_be_refused_must_not_succeed() -> None:
    assert account(job(), submission=replace(PLAIN, is_refused=True)).lost == 1
