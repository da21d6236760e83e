"""Bounds of requests that need no loaded model: depth, number of values, work. Each refusal is one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.config import ControllerConfig
from triptych.errors import InvalidRequest
from triptych.model import costs
from triptych.model.inputs import resolve
from triptych.v1.job_pb2 import PRIORITY_LOW, GenerationRequest
from triptych.v1.model_pb2 import (
    INPUT_KIND_INTEGER,
    INPUT_KIND_LIST,
    INPUT_KIND_MAPPING,
    INPUT_KIND_NUMBER,
    INPUT_KIND_TEXT,
    ModelDescription,
)

WORK = {"num_frames": 9, "height": 64, "width": 32, "num_inference_steps": 10}


def model(defaults_json: str = "", **defaults: int | None) -> ModelDescription:
    """A model that takes frames, sizes and steps, with these defaults."""
    described = ModelDescription(model="toy", outputs=["videos"], defaults_json=defaults_json)
    described.inputs.add(name="prompt", kind=INPUT_KIND_TEXT, required=True)
    for name in costs.WORK_INPUTS:
        default = defaults.get(name)
        described.inputs.add(name=name, kind=INPUT_KIND_INTEGER, default_json="" if default is None else str(default))
    described.inputs.add(name="num_videos_per_prompt", kind=INPUT_KIND_INTEGER)
    described.inputs.add(name="sigmas", kind=INPUT_KIND_LIST)
    described.inputs.add(name="options", kind=INPUT_KIND_MAPPING)
    return described


def request(parameters: dict[str, Any] | None = None, **fields: Any) -> GenerationRequest:
    made = GenerationRequest(prompt="a circle", **fields)
    made.parameters.update(parameters or {})
    return made


def work(asked: GenerationRequest, described: ModelDescription) -> float:
    return math.prod(resolve(asked, described).work.values())


def nested(depth: int) -> Any:
    """A value that is so many deep, lists and mappings in turn."""
    value: Any = {}
    for level in range(depth - 1):
        value = {"a": value} if level % 2 else [value]
    return value if isinstance(value, dict) else {"a": value}


def test_depth_is_bounded() -> None:
    resolve(request({"options": nested(costs.PARAMETERS_DEPTH_MAX - 1)}), model())
    with pytest.raises(InvalidRequest) as refused:
        resolve(request({"options": nested(costs.PARAMETERS_DEPTH_MAX + 1)}), model())
    assert str(refused.value) == "parameters.options is 'nested 17 deep or more'; accepted: at most 16"


@pytest.mark.parametrize("shape", ["wide", "several", "deep and wide"])
def test_the_number_of_values_is_bounded_over_all_parameters(shape: str) -> None:
    half = costs.PARAMETERS_VALUES_MAX // 2
    parameters: dict[str, Any] = {
        "wide": {"sigmas": [0.5] * (2 * half)},
        "several": {"sigmas": [0.5] * half, "options": {str(n): 0.5 for n in range(half)}},
        "deep and wide": {"options": {str(n): [0.5] * 100 for n in range(half // 50)}},
    }[shape]
    with pytest.raises(InvalidRequest, match=r"parameters is '\d+ values or more'; accepted: at most 10000"):
        resolve(request(parameters), model())
    resolve(request({"sigmas": [0.5] * (half - 2), "options": {str(n): 0.5 for n in range(half)}}), model())


def test_work_is_bounded_and_named_factor_by_factor() -> None:
    product = 9 * 64 * 32 * 10 * 2
    asked = request(num_outputs=2, **WORK)
    assert work(asked, model()) == product
    factors = resolve(asked, model()).work
    costs.check_work(factors, product)
    with pytest.raises(InvalidRequest) as refused:
        costs.check_work(factors, product - 1)
    field = "num_outputs x num_frames x height x width x num_inference_steps"
    assert str(refused.value) == (
        f"{field} is '2 x 9 x 64 x 32 x 10 = 368640'; accepted: at most 368639 (the controller's work_max)"
    )
    costs.check_work(factors, 0)
    assert costs.pixels_of(factors) == 9 * 64 * 32 * 2, "memory doesn't grow with steps"


@given(given_fields=st.sets(st.sampled_from(sorted(WORK))), recommended=st.sets(st.sampled_from(sorted(WORK))))
def test_what_a_request_leaves_out_is_the_models_default(given_fields: set[str], recommended: set[str]) -> None:
    """The folder's recommendation before the pipeline's default, the request before both."""
    defaults_json = "{" + ", ".join(f'"{name}": 7' for name in recommended) + "}"
    described = model(defaults_json, **dict.fromkeys(WORK, 5))
    expected = 1
    for name, value in WORK.items():
        expected *= value if name in given_fields else 7 if name in recommended else 5
    assert work(request(**{name: WORK[name] for name in given_fields}), described) == expected


def test_a_default_that_the_model_computes_counts_as_one() -> None:
    assert work(request(num_inference_steps=3), model(num_frames=5)) == 15


@pytest.mark.parametrize(
    ("parameters", "meant"),
    [
        ({}, "text"),
        ({"options": {}}, "options"),
        ({"sigmas": [1.0], "options": {}}, "both"),
        ({"options": None}, "text"),
    ],
)
@pytest.mark.parametrize("served", ["text", "options", "both"])
def test_jobs_of_workflows_that_are_not_loaded_are_refused(parameters: dict[str, Any], meant: str, served: str) -> None:
    """A request is of the workflow with the most inputs of those that it gives."""
    described = model()
    inputs = {"text": [], "options": ["options"], "both": ["options", "sigmas"]}
    for name, others in inputs.items():
        described.workflows.add(name=name, inputs=["prompt", *others], is_served=name == served)
    asked = request(parameters, num_frames=9)
    if meant == served:
        resolve(asked, described)
        return
    with pytest.raises(InvalidRequest) as refused:
        resolve(asked, described)
    accepted = f"one of the workflows that this fleet has loaded: {served}"
    assert str(refused.value) == f"request is 'a job of the workflow {meant}'; accepted: {accepted}"


def test_priorities() -> None:
    resolve(request(priority=PRIORITY_LOW), model())
    with pytest.raises(InvalidRequest, match="priority is 7; accepted: PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW"):
        resolve(request(priority=7), model())


@pytest.mark.parametrize("value", ["x" * (costs.PROMPT_BYTES_MAX + 1), ["é" * costs.PROMPT_BYTES_MAX]])
def test_every_text_in_parameters_is_bounded_as_the_prompt_is(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.options is '\d+ bytes'; accepted: at most 65536 bytes of"):
        resolve(request({"options": {"prompt_2": value}}), model())


def test_the_pixels_of_a_result_are_bounded() -> None:
    """8192 x 8192 x 4093 frames are 3 TiB, and one step of them is less than the bound on work."""
    asked = request(num_frames=4093, height=8192, width=8192, num_inference_steps=1)
    work, result_bytes_max = resolve(asked, model()).work, ControllerConfig().result_bytes_max
    with pytest.raises(InvalidRequest) as refused:
        costs.check_result(work, result_bytes_max)
    assert str(refused.value) == (
        "num_outputs x num_frames x height x width is '1 x 4093 x 8192 x 8192 = 3.29612e+12 bytes of pixels'; "
        "accepted: at most 4.29497e+09 (the controller's result_bytes_max)"
    )
    costs.check_result(work, 0)
    largest_known = request(num_frames=121, height=720, width=1280)
    costs.check_result(resolve(largest_known, model()).work, result_bytes_max)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("max_sequence_length", -1, 512),
        ("max_sequence_length", 100_000, 4096),
        ("clip_skip", 99, 1),
        ("strength", 0, 1),
        ("strength", 0.2, 0.25),
    ],
)
def test_numbers_that_no_pipeline_works_with_are_refused_at_once(name: str, bad: float, good: float) -> None:
    described = model(num_inference_steps=4)
    described.inputs.add(name=name, kind=INPUT_KIND_NUMBER)
    resolve(request({name: good}), described)
    with pytest.raises(InvalidRequest, match=rf"parameters\.{name} is '{bad:g}'; accepted: "):
        resolve(request({name: bad}), described)
