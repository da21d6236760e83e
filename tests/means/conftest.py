"""Stages with means, and diffusers' own pipeline in one process with the same calls: the bits that they must give."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from tests import needs
from tests.stages.conftest import _one_thread as _one_thread
from tests.stages.conftest import folder_of as folder_of
from tests.stages.test_parity import pipeline_arguments, request_of
from triptych.means.options import of_tables
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.model_pb2 import ModelDescription

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "wan_t2v": {"num_frames": 5, "guidance_scale": 3.5, "num_inference_steps": 6},
    "ltx_image": {"num_frames": 5, "guidance_scale": 3.0, "num_inference_steps": 6},
    "qwen_image": {"num_inference_steps": 4},
    "sd3": {"guidance_scale": 5.0, "num_inference_steps": 4, "num_outputs": 2},
}
"""A job of each model, with enough steps for a cache to skip some."""
Array = np.ndarray[Any, Any]


def needs_package(name: str) -> None:
    """Skip where an optional package isn't installed."""
    if importlib.util.find_spec(name) is None:
        needs.skip(f"the package {name} isn't installed: pip install 'triptych[quantization]'")


@functools.cache
def opened(folder: str) -> tuple[Whole, ModelDescription]:
    """A model and its description, opened once."""
    whole = Whole.open(folder)
    return whole, describe(whole)


@functools.cache
def plain_stage(folder: str, role: Any) -> Stage:
    """A role without means, loaded once."""
    return Stage.load(opened(folder)[0], role)


def stages_of(folder: str, tables: Mapping[str, Any], **settings: Any) -> list[Stage]:
    """The three roles with the same means; those that hold none of the components named are the plain ones."""
    whole, _model = opened(folder)
    named = tables.get("components", {})
    is_for_all = bool(settings) or "process" in tables or any("dtype" in one for one in named.values())
    return [
        Stage.load(whole, role, means=of_tables(tables), **settings)
        if is_for_all or set(named) & set(whole.component_names(role))
        else plain_stage(folder, role)
        for role in ROLES
    ]


def held(stages: list[Stage], name: str) -> Any:
    """The component as the first role that has loaded it has it."""
    for stage in stages:
        if name in stage._pipeline._component_specs and name not in stage.waiting:
            return stage._pipeline._role_components.get(name)
    raise LookupError(name)


def run_job(folder: str, stages: list[Stage], fields: Mapping[str, Any], seed: int = 7) -> Array:
    """One job through stages in this process."""
    values: Mapping[str, object] = resolve(request_of(dict(fields), seed), opened(folder)[1]).for_encoder()
    for stage in stages:
        values = stage.run(values, lambda _step: None, lambda: False)
    (output,) = values.values()
    return np.asarray(output)


def ours(folder: str, fields: Mapping[str, Any], tables: Mapping[str, Any], **settings: Any) -> Array:
    """A job's result with these means."""
    return run_job(folder, stages_of(folder, tables, **settings), fields)


def reference(
    folder: str,
    fields: Mapping[str, Any],
    change: Callable[[Any], object] = lambda _pipeline: None,
    seed: int = 7,
    **load: Any,
) -> Array:
    """diffusers' own pipeline, whole, after `change`. `load` goes to `load_components`."""
    pipeline = diffusers.ModularPipeline.from_pretrained(folder)
    pipeline.load_components(**{"dtype": torch.float32, **load})
    if "guidance_scale" in fields:
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=fields["guidance_scale"]))
    change(pipeline)
    output = opened(folder)[1].outputs[0]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return np.asarray(pipeline(**pipeline_arguments(dict(fields), False), generator=generator, output=output))


def components(**tables: Any) -> dict[str, Any]:
    """The tables of means that only say something of components."""
    return {"components": tables}
