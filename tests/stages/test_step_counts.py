"""What a scheduler can't do is refused before a job is accepted; what it can is not."""

from __future__ import annotations

import time
from typing import Any

import diffusers
import pytest
import torch

from triptych.errors import InvalidRequest
from triptych.model.fields import STEPS_MAX
from triptych.model.inputs import resolve
from triptych.stages.describe import steps_max
from triptych.v1.job_pb2 import GenerationRequest

WITH_SHIFT_3 = 333
"""Steps of UniPC's flow timesteps before two of them round to the same one of a thousand."""


def unipc(shift: float = 3.0) -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def runs(scheduler: Any, count: int) -> bool:
    scheduler.set_timesteps(count)
    sample = torch.zeros(1, 2)
    try:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("count", [334, 400, 1000])
def test_steps_that_the_scheduler_fails_at_are_refused(model: Any, count: int) -> None:
    description = model("wan_t2v").description
    assert description.num_inference_steps_max == WITH_SHIFT_3
    with pytest.raises(InvalidRequest) as refused:
        resolve(GenerationRequest(prompt="a", num_inference_steps=count), description)
    accepted = "a whole number, 1 to 333 (this model's scheduler can do no more)"
    assert str(refused.value) == f"num_inference_steps is {count}; accepted: {accepted}"


def test_as_many_as_it_can_do_are_accepted(model: Any) -> None:
    resolve(GenerationRequest(prompt="a", num_inference_steps=WITH_SHIFT_3), model("wan_t2v").description)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_the_bound_is_where_it_really_fails(shift: float) -> None:
    most = steps_max(unipc(shift)) or STEPS_MAX
    for count in {2, most // 2, most - 1, most}:
        assert runs(unipc(shift), count), count
    for count in {most + 1, (most + STEPS_MAX) // 2, STEPS_MAX} - {most}:
        assert count > STEPS_MAX or most == STEPS_MAX or not runs(unipc(shift), count), count


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.EulerDiscreteScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.DDIMScheduler(),
        diffusers.DDPMScheduler(),
        None,
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_others_are_not_bounded_and_nothing_is_drawn(scheduler: Any) -> None:
    before, began_s = torch.get_rng_state(), time.process_time()
    assert steps_max(scheduler) == 0
    assert time.process_time() - began_s < 2.0, "a worker's start waits for it"
    assert torch.equal(before, torch.get_rng_state())
