"""The first job after a start has the bits of the second: nothing that is built for it draws its random numbers."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.stages.conftest import FAMILIES
from tests.stages.test_parity import CASES, stage_inputs
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.device import undisturbed
from triptych.stages.pipelines import Components
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, np.asarray(other)))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))  # type: ignore[arg-type]
    return type(one) is type(other)


def run(stages: list[Stage], inputs: dict[str, object]) -> list[dict[str, object]]:
    """What each role yields, in turn."""
    found = []
    for stage in stages:
        inputs = stage.run(inputs, lambda _step: None, lambda: False)
        found.append(inputs)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_first_job_equals_the_second(case: str, folder_of: Callable[[str], str]) -> None:
    name, fields, with_image = CASES[case]
    whole = Whole.open(folder_of(name))
    stages = [Stage.load(whole, role) for role in ROLES]
    model = types.SimpleNamespace(description=describe(whole))
    first, second = (run(stages, stage_inputs(model, fields, with_image)) for _ in range(2))
    for stage, one, other in zip(stages, first, second, strict=True):
        assert equal(one, other), f"role {stage.role}"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_component_that_is_made_moves_a_generator(family: str, folder_of: Callable[[str], str]) -> None:
    whole = Whole.open(folder_of(family))
    components = Components(whole.pipeline, torch.float32, torch.device("cpu"))

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]

    for name in components.specs:
        before = states()
        components.get(name)
        assert states() == before, name
        components.load(name)
        assert states() == before, name


def test_every_global_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with undisturbed():
        torch.rand(3), random.random(), np.random.rand(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]
