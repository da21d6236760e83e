"""Progress and cancel at each denoising step, also in loops that go over chunks and have their steps inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.families import cases, monolith
from tests.families.requests import request_of
from tests.stages.conftest import assert_equal_bits
from triptych.errors import JobCancelled
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import Step
from triptych.stages.chunks import Chunk, watched
from triptych.stages.describe import describe
from triptych.stages.library import diffusers
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER

STEPS = {
    "helios": 2 * 2,
    "helios-pyramid": 2 * (2 + 1 + 1),
    "HeliosPyramidDistilledModularPipeline": 2 * (2 + 1 + 1) + (2 + 1 + 1),
    "wan-animate-2": 2 * 2,
    "wan-animate-2-distilled": 2 * 2,
    "minimax-music3": 2 * 1,
    "wan": 3,
}
"""Steps of the first case of each: by two chunks of two steps, say. The distilled one doubles its first chunk's."""


def long_case(family: str) -> cases.Case:
    case = cases.cases_of(family)[0]
    more = {"num_inference_steps": 3} if family == "wan" else {}
    return cases.Case(family, case.workflow, {**case.arguments, **more})


@pytest.mark.parametrize("family", STEPS)
def test_each_step_is_reported_and_changes_no_bit(family: str, family_folder: Callable[[str], str]) -> None:
    case = long_case(family)
    whole = Whole.open(family_folder(family))
    stages = [Stage.load(whole, role) for role in ROLES]
    point = model_pb2.STEP_POINT_LOOP if family == "wan" else model_pb2.STEP_POINT_SCHEDULER
    assert describe(whole).step_point == point
    values = resolve(request_of(case, preview_every_steps=1), describe(whole)).for_encoder()
    steps: list[Step] = []
    for stage in stages:
        encoded, values = values, stage.run(values, steps.append, lambda: False)
        if stage.role == ROLE_TRANSFORMER:
            assert [step.step for step in steps] == list(range(1, STEPS[family] + 1))
            assert_cancels(stage, encoded)
    assert steps[-1].step_count == steps[-1].step
    assert [step.step_count for step in steps] == sorted(step.step_count for step in steps)
    if family != "HeliosPyramidDistilledModularPipeline":  # whose scheduler says what it adds as it goes
        assert {step.step_count for step in steps} == {STEPS[family]}
    for name, value in monolith.run(whole.model, case, list(values)).items():
        assert_equal_bits(values[name], value)


def assert_cancels(stage: Stage, inputs: dict[str, object]) -> None:
    """After the first step, and at once."""
    seen: list[Step] = []
    with pytest.raises(JobCancelled):
        stage.run(inputs, seen.append, lambda: bool(seen))
    assert [step.step for step in seen] == [1]


def test_a_copy_of_a_watched_scheduler_is_its_own_and_not_watched() -> None:
    seen: list[Any] = []
    scheduler = watched(diffusers.UniPCMultistepScheduler(), lambda stepped, latents: seen.append(stepped))
    assert type(copy.deepcopy(scheduler)) is diffusers.UniPCMultistepScheduler
    assert type(copy.copy(scheduler)) is diffusers.UniPCMultistepScheduler
    assert vars(copy.deepcopy(scheduler)).keys() == vars(diffusers.UniPCMultistepScheduler()).keys()


def test_steps_of_parts_that_the_scheduler_adds_to_are_foreseen() -> None:
    """The first part has twice the steps that were asked for, so the second is taken to have, too."""
    chunk = Chunk(number=0, count=2, steps_before=0, asked=(2, 3))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    chunk.take(scheduler)
    assert chunk.step_count() == 4 + 6 + 5
    scheduler.set_timesteps(6)
    chunk.take(scheduler)
    assert chunk.step_count() == 4 + 6 + 5
