"""What the fleet runs: fake stages for volume, or a tiny real model; and what each request must give, to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from tests.chaos.plan import Shape, Submission
from triptych.config import WorkerConfig
from triptych.media import encoding
from triptych.stages.fake import SIDE_SHARE, expected_outputs
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client.request import build_request

ARENA_BYTES = 16 * 2**20
REAL_STEPS_FACTOR = 20
"""A step of the tiny model takes milliseconds; with so many more a fault hits a job at work."""


class Stages(Protocol):
    """A choice of stages."""

    def worker_flags(self, role: str) -> tuple[str, ...]:
        """Flags of a role's workers."""

    @property
    def other_model_flags(self) -> tuple[str, ...]:
        """Flags, after those of the role, with which workers serve another model."""

    def adapt(self, submission: Submission) -> Submission:
        """The submission without what these stages can't do."""

    def request(self, submission: Submission) -> GenerationRequest:
        """What the client sends; its deadline counts from now."""

    def digest(self, submission: Submission) -> str:
        """SHA-256 of the file that it must get."""


class FakeStages:
    """`triptych.stages.fake`: the reference is computed by the same pure functions, in this process."""

    def __init__(self, seconds_by_role: Mapping[str, float]) -> None:
        self._seconds_by_role = seconds_by_role

    def worker_flags(self, role: str) -> tuple[str, ...]:
        """See `Stages`. The flag is of the transformer's time, of which the other roles take a share."""
        seconds = self._seconds_by_role[role] / (1.0 if role == "transformer" else SIDE_SHARE)
        return ("--fake-stage-seconds", f"{seconds:g}", "--arena-bytes", str(ARENA_BYTES))

    @property
    def other_model_flags(self) -> tuple[str, ...]:
        """See `Stages`."""
        return ("--fake-model", "another")

    def adapt(self, submission: Submission) -> Submission:
        """As it is."""
        return submission

    def request(self, submission: Submission) -> GenerationRequest:
        """See `Stages`."""
        request = build_request(
            submission.prompt,
            seed=submission.seed,
            height=submission.height,
            width=submission.width,
            num_inference_steps=submission.steps,
            output_format="npy",
            parameters={"refuse": True} if submission.is_refused else None,
        )
        _set_deadline(request, submission)
        return request

    def digest(self, submission: Submission) -> str:
        """See `Stages`. Nothing for a job that is refused."""
        if submission.is_refused:
            return ""
        request = self.request(replace(submission, deadline_s=None))
        (artifact,) = encoding.encode_outputs(expected_outputs(request), "npy", 16.0)
        return hashlib.sha256(artifact.data).hexdigest()


class RealStages:
    """The tests' tiny random Wan. The reference is the three stages in a row, in this process."""

    def __init__(self, folder: Path) -> None:
        from tests.models import wan_t2v
        from triptych_client.fused import FusedModel

        model = wan_t2v(folder / "one")
        self._other = wan_t2v(folder / "other", seed=1)
        self._flags = ("--model", model, "--arena-bytes", str(4 * ARENA_BYTES))
        self._model = FusedModel.load(WorkerConfig(model=model, threads=1))

    def worker_flags(self, role: str) -> tuple[str, ...]:
        """See `Stages`."""
        return self._flags

    @property
    def other_model_flags(self) -> tuple[str, ...]:
        """See `Stages`."""
        return ("--model", self._other)

    def adapt(self, submission: Submission) -> Submission:
        """No model refuses a value that the controller accepts, so nothing asks for that."""
        return replace(submission, is_refused=False)

    def request(self, submission: Submission) -> GenerationRequest:
        """See `Stages`."""
        request = build_request(
            submission.prompt,
            seed=submission.seed,
            height=32,
            width=64,
            num_frames=5,
            num_inference_steps=REAL_STEPS_FACTOR * submission.steps,
            negative_prompt="blur",
            output_format="npy",
        )
        _set_deadline(request, submission)
        return request

    def digest(self, submission: Submission) -> str:
        """See `Stages`."""
        request = self.request(replace(submission, deadline_s=None))
        (artifact,) = encoding.encode_outputs(self._model.run(request), "npy", 16.0)
        return hashlib.sha256(artifact.data).hexdigest()


def shape_of(stages: str, jobs: int, faults: int, seconds: float) -> Shape:
    """A real model's processes take seconds to start and some CPU, so there are fewer of them."""
    if stages == "real":
        return Shape(encoders=1, transformers=2, decoders=1, jobs=jobs, faults=faults, seconds=seconds)
    return Shape(jobs=jobs, faults=faults, seconds=seconds)


def _set_deadline(request: GenerationRequest, submission: Submission) -> None:
    if submission.deadline_s is not None:
        request.deadline_time.GetCurrentTime()
        request.deadline_time.FromDatetime(
            request.deadline_time.ToDatetime() + timedelta(seconds=submission.deadline_s)
        )
