"""What a pipeline accepts, read off its blocks and configs, as a `ModelDescription`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.model import rates
from triptych.model.description import Description
from triptych.model.fields import STEPS_MAX
from triptych.model.inputs import check_defaults
from triptych.roles import role_name
from triptych.stages import guidance, results, sounds
from triptych.stages.device import undisturbed
from triptych.stages.folder import RECOMMENDATIONS_NAME, read_recommendations
from triptych.stages.inputs import describe_input, takes_alpha
from triptych.stages.library import BaseGuidance, SchedulerMixin, diffusers
from triptych.stages.observer import step_point
from triptych.stages.options import guider_inputs, scheduler_inputs
from triptych.stages.preview_sources import read_factors
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, ROLE_TRANSFORMER

_SPATIAL_FACTORS = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
"""Properties of pipelines for the pixels that a latent covers; the first that exists counts."""
_TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""Properties for the frames that a latent covers."""
_COMPUTED = ("height", "width", "num_frames")
"""Inputs whose default may be a property of the pipeline, for example `default_height`."""


def describe(whole: Whole, adapters: Sequence[model_pb2.AdapterDescription] = ()) -> model_pb2.ModelDescription:
    """The description of an opened pipeline, for which there are these adapters.

    Raises `ModelInvalid` where a component's configuration can't be read, the folder recommends a default for an
    input that doesn't exist, or its factors for previews can't be used.
    """
    pipeline = whole.inspection()
    blocks = whole.pipeline._blocks
    guiders = _of_kind(whole, BaseGuidance)
    sound_rate_hz = sounds.input_rate(pipeline, whole.component_names(ROLE_ENCODER))
    inputs = [describe_input(parameter, blocks) for parameter in blocks.inputs if parameter.name]
    for described in inputs:
        described.takes_alpha = described.kind == model_pb2.INPUT_KIND_IMAGE and takes_alpha(described.name, pipeline)
        _add_computed_default(described, pipeline)
        sounds.add_rate(described, sound_rate_hz)
    for number, (name, guider) in enumerate(guiders.items()):
        inputs.extend(guider_inputs(name, guider, is_first=number == 0))
    for name, scheduler in _of_kind(whole, SchedulerMixin).items():
        inputs.extend(scheduler_inputs(name, scheduler))
    names = {described.name for described in inputs}
    description = model_pb2.ModelDescription(
        model=whole.model,
        revision=whole.revision,
        pipeline_class=type(whole.pipeline).__name__,
        diffusers_version=diffusers.__version__,
        config_digest=whole.config_digest(),
        inputs=inputs,
        outputs=whole.outputs(),
        size_multiple=size_multiple(pipeline),
        frame_multiple=_first_factor(pipeline, _TEMPORAL_FACTORS) if "num_frames" in names else 0,
        components=_components(whole),
        step_point=step_point(whole.blocks[ROLE_TRANSFORMER]),
        num_inference_steps_max=steps_max(getattr(pipeline, "scheduler", None)),
        workflows=[
            model_pb2.WorkflowDescription(
                name=name, inputs=given, is_served=not whole.workflows or name in whole.workflows
            )
            for name, given in whole.workflow_inputs()
        ],
        adapters=adapters,
    )
    scale = guidance.scale_in_force(next(iter(guiders.values()), None))
    if "guidance_scale" in names:
        description.without_guidance = guidance.denoiser_config(pipeline).get(guidance.TAKES_SCALE) is False
    elif scale is not None:
        description.guidance_scale = scale
    _add_recommended(description, whole, pipeline)
    read_factors(whole)  # every role refuses broken ones at its start
    description.result.CopyFrom(results.describe_result(whole, pipeline, Description(description)))
    return description


def _add_recommended(description: model_pb2.ModelDescription, whole: Whole, pipeline: Any) -> None:
    """Check the defaults that the model's folder recommends, and put them in.

    Each input then has one default, which is what a request gets that leaves the input out. `defaults_json` has
    all of the folder's, also those that are no inputs.
    """
    recommended = read_recommendations(Path(whole.model))
    rate = rates.rate_input(Description(description))
    found = (getattr(pipeline, name, None) for name in rates.RATE_INPUTS)
    fixed_rate = next((rate for rate in found if isinstance(rate, int | float)), None)
    if fixed_rate is not None and rate is None:  # the pipeline makes all its videos at one rate
        recommended = {rates.FIELD: fixed_rate, **recommended}
    known = {described.name for described in description.inputs} | {"guidance_scale", rates.FIELD}
    if unknown := sorted(set(recommended) - known):
        raise ModelInvalid(f"triptych.json of {whole.model!r} recommends values for unknown inputs {unknown}")
    description.defaults_json = json.dumps(recommended, sort_keys=True) if recommended else ""
    rates.check_recommended(Description(description))
    try:
        check_defaults(Description(description))
    except InvalidRequest as error:
        raise ModelInvalid(f"{Path(whole.model, RECOMMENDATIONS_NAME)} can't be used: {error}") from error
    if rate is not None and rates.FIELD in recommended:
        recommended = {rate.name: recommended[rates.FIELD], **recommended}
    for described in description.inputs:
        if described.name in recommended:
            described.default_json = json.dumps(recommended[described.name])
    scale = recommended.get("guidance_scale")
    if description.HasField("guidance_scale") and isinstance(scale, int | float):
        description.guidance_scale = scale


def _add_computed_default(described: model_pb2.InputDescription, pipeline: Any) -> None:
    """Add a size or length that the blocks take from the pipeline where a request leaves it out."""
    default = getattr(pipeline, f"default_{described.name}", None)
    if described.name in _COMPUTED and not described.default_json and isinstance(default, int):
        described.default_json = json.dumps(default)


def _of_kind(whole: Whole, kind: type) -> dict[str, Any]:
    """The model's components of this class, by name."""
    components = whole.components()
    found = {name: components.get(name) for name in components.names_of(kind)}
    return {name: one for name, one in found.items() if one is not None}


def size_multiple(pipeline: Any) -> int:
    """Pixels that one token of the denoiser covers: the VAE's factor times the denoiser's patch; 0 where unknown.

    `pipeline` answers about configuration, as `Whole.inspection` does.
    """
    factor = _first_factor(pipeline, _SPATIAL_FACTORS)
    config = getattr(getattr(pipeline, "transformer", None), "config", {})
    patch = config.get("patch_size", 1)
    if isinstance(patch, (list, tuple)):
        patch = patch[-1]
    return factor * patch if isinstance(patch, int) else factor


def _first_factor(pipeline: Any, names: tuple[str, ...]) -> int:
    factors = (getattr(pipeline, name, None) for name in names)
    return next((int(factor) for factor in factors if isinstance(factor, (int, float)) and factor >= 1), 0)


def _components(whole: Whole) -> list[model_pb2.ComponentDescription]:
    names_by_role = {role: whole.component_names(role) for role in whole.blocks}
    return [
        model_pb2.ComponentDescription(name=name, class_name=getattr(spec.type_hint, "__name__", ""), roles=roles)
        for name, spec in whole.pipeline._component_specs.items()
        if (roles := [role_name(role) for role, names in names_by_role.items() if name in names])
    ]


def steps_max(scheduler: Any) -> int:
    """The most denoising steps that the scheduler can do, or 0 where it can do all, or doesn't say.

    Some round their timesteps: past a number of steps the first two are equal, and the search for the first finds the
    second. Multistep schedulers may fail an assertion then, after all steps but the last. Asking costs some twenty
    lists of timesteps, found by halving, and two runs on one number.
    """
    if not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "step"):
        return 0
    with undisturbed():
        tried = copy.deepcopy(scheduler)
        try:
            if not _starts_twice(tried, STEPS_MAX):
                return 0
            most = 1
            least_bad = STEPS_MAX
            while least_bad - most > 1:
                middle = (most + least_bad) // 2
                most, least_bad = (most, middle) if _starts_twice(tried, middle) else (middle, least_bad)
        except Exception:  # noqa: BLE001 — it wants more than a number of steps, which only its pipeline knows
            return 0
        return most if _runs(tried, most) and not _runs(tried, least_bad) else 0


def _starts_twice(scheduler: Any, count: int) -> bool:
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps
    return len(timesteps) > 1 and bool(timesteps[0] == timesteps[1])


def _runs(scheduler: Any, count: int) -> bool:
    scheduler.set_timesteps(count)
    sample = torch.zeros(1, 1, 1, 1)
    try:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]
    except Exception:  # noqa: BLE001 — as above
        return False
    return True
