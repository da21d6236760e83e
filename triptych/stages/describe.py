"""What a pipeline accepts, read off its blocks and configs, as a `ModelDescription`."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.model import rates
from triptych.model.defaults import check_defaults
from triptych.model.description import Description
from triptych.roles import role_name
from triptych.stages import guidance
from triptych.stages.folder import RECOMMENDATIONS_NAME
from triptych.stages.library import INPUT_PARAM_TEMPLATES, InputParam, ModularPipelineBlocks, diffusers
from triptych.stages.pictures import options_of, pictures_of, takes_alpha, takes_several
from triptych.stages.step_counts import steps_max
from triptych.v1 import model_pb2

if TYPE_CHECKING:
    from triptych.stages.whole import Whole

_SPATIAL_FACTORS = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
"""Properties of pipelines for the pixels that a latent covers; the first that exists counts."""

_TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""Properties for the frames that a latent covers."""

_PLAIN_KINDS: dict[object, model_pb2.InputKind.ValueType] = {
    str: model_pb2.INPUT_KIND_TEXT,
    bool: model_pb2.INPUT_KIND_BOOLEAN,
    int: model_pb2.INPUT_KIND_INTEGER,
    float: model_pb2.INPUT_KIND_NUMBER,
    list: model_pb2.INPUT_KIND_LIST,
    tuple: model_pb2.INPUT_KIND_LIST,
    dict: model_pb2.INPUT_KIND_MAPPING,
}


_COMPUTED = ("height", "width", "num_frames")
"""Inputs whose default may be a property of the pipeline, for example `default_height`."""

_REQUIRABLE_KINDS = (model_pb2.INPUT_KIND_TEXT, model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)
"""Kinds whose `required` can be trusted. Some blocks require numbers and tensors that others fill in; where one is
really missing, its block says so when the job runs."""


def describe(whole: Whole) -> model_pb2.ModelDescription:
    """The description of an opened pipeline.

    Raises `ModelInvalid` where a component's configuration can't be read or the folder recommends a default for an
    input that doesn't exist.
    """
    pipeline = whole.inspection()
    blocks = whole.pipeline._blocks
    guiders = _guiders(whole)
    inputs = [describe_input(parameter, blocks) for parameter in blocks.inputs if parameter.name]
    for described in inputs:
        described.takes_alpha = described.kind == model_pb2.INPUT_KIND_IMAGE and takes_alpha(described.name, pipeline)
        _add_computed_default(described, pipeline)
    for number, (name, guider) in enumerate(guiders.items()):
        inputs.extend(_guider_options(name, guider, is_first=number == 0))
    names = {described.name for described in inputs}
    description = model_pb2.ModelDescription(
        model=whole.model,
        revision=whole.revision,
        pipeline_class=type(whole.pipeline).__name__,
        diffusers_version=diffusers.__version__,
        config_digest=whole.config_digest(),
        inputs=inputs,
        outputs=whole.outputs(),
        size_multiple=_size_multiple(pipeline),
        frame_multiple=_first_factor(pipeline, _TEMPORAL_FACTORS) if "num_frames" in names else 0,
        components=_components(whole),
        num_inference_steps_max=steps_max(getattr(pipeline, "scheduler", None)),
        workflows=[
            model_pb2.WorkflowDescription(
                name=name, inputs=given, is_served=not whole.workflows or name in whole.workflows
            )
            for name, given in whole.workflow_inputs()
        ],
    )
    scale = guidance.scale_in_force(next(iter(guiders.values()), None))
    if "guidance_scale" in names:
        description.without_guidance = guidance.denoiser_config(pipeline).get(guidance.TAKES_SCALE) is False
    elif scale is not None:
        description.guidance_scale = scale
    _add_recommended(description, whole, _fixed_rate(pipeline))
    return description


def _add_recommended(description: model_pb2.ModelDescription, whole: Whole, fixed_rate: float | None) -> None:
    """Check the defaults that the model's folder recommends, and put them in.

    Each input then has one default, which is what a request gets that leaves the input out. `defaults_json` has
    all of the folder's, also those that are no inputs.
    """
    recommended = whole.recommendations()
    rate = rates.rate_input(Description(description))
    if fixed_rate is not None and rate is None:
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


def _fixed_rate(pipeline: Any) -> float | None:
    """The frame rate of a pipeline that makes all its videos at one (its property `fps`)."""
    found = (getattr(pipeline, name, None) for name in rates.RATE_INPUTS)
    return next((rate for rate in found if isinstance(rate, int | float)), None)


def _add_computed_default(described: model_pb2.InputDescription, pipeline: Any) -> None:
    """Add a size or length that the blocks take from the pipeline where a request leaves it out."""
    default = getattr(pipeline, f"default_{described.name}", None)
    if described.name in _COMPUTED and not described.default_json and isinstance(default, int):
        described.default_json = json.dumps(default)


def describe_input(parameter: InputParam, blocks: ModularPipelineBlocks) -> model_pb2.InputDescription:
    """One input of the blocks. Where a block gives no type, diffusers' glossary of names, then its default, decides."""
    hint = parameter.type_hint or INPUT_PARAM_TEMPLATES.get(parameter.name, {}).get("type_hint")
    if hint is None and parameter.default is not None:
        hint = type(parameter.default)
    kind = kind_of(parameter.name, hint)
    return model_pb2.InputDescription(
        name=parameter.name,
        kind=kind,
        required=bool(parameter.required) and kind in _REQUIRABLE_KINDS,
        default_json=_json_or_empty(parameter.default),
        description=" ".join((parameter.description or "").split()),
        type_hint="" if hint is None else getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint),
        takes_several=kind == model_pb2.INPUT_KIND_IMAGE and takes_several(parameter.name, hint, blocks),
    )


def kind_of(name: str, hint: Any) -> model_pb2.InputKind.ValueType:
    """The kind of value that a type hint allows a request to carry.

    Pictures win over everything else that a union allows, plain values over tensors. A list of pictures with no
    single picture beside it is a video, and so is an input for pictures with `video` in its name.
    """
    if hint is None:
        return model_pb2.INPUT_KIND_VIDEO if name.endswith("video") else model_pb2.INPUT_KIND_UNSPECIFIED
    options = options_of(hint)
    if pictures := pictures_of(hint):
        is_video = "video" in name or PIL.Image.Image not in pictures
        return model_pb2.INPUT_KIND_VIDEO if is_video else model_pb2.INPUT_KIND_IMAGE
    kinds = {
        _PLAIN_KINDS[plain] for option in options if (plain := typing.get_origin(option) or option) in _PLAIN_KINDS
    }
    holds_object = any(_holds_object(option) for option in options)
    if kinds == {model_pb2.INPUT_KIND_INTEGER, model_pb2.INPUT_KIND_NUMBER}:
        return model_pb2.INPUT_KIND_NUMBER
    if kinds == {model_pb2.INPUT_KIND_TEXT, model_pb2.INPUT_KIND_LIST}:
        return model_pb2.INPUT_KIND_TEXT
    if not kinds or (holds_object and kinds <= {model_pb2.INPUT_KIND_LIST}):
        return model_pb2.INPUT_KIND_INTERNAL
    return kinds.pop() if len(kinds) == 1 else model_pb2.INPUT_KIND_UNSPECIFIED


def _holds_object(option: Any) -> bool:
    """Whether a container's items are objects that no JSON value gives, as in `list[torch.Tensor]`."""
    items = [plain for item in typing.get_args(option) for plain in options_of(item)]
    return any(isinstance(item, type) and item not in _PLAIN_KINDS for item in items)


def _guiders(whole: Whole) -> dict[str, Any]:
    components = whole.components()
    found = {name: components.get(name) for name in components.guiders}
    return {name: guider for name, guider in found.items() if guider is not None}


def _guider_options(name: str, guider: Any, *, is_first: bool) -> list[model_pb2.InputDescription]:
    """Options of a guider as inputs named `component.option`. The first guider's scale is the request's own field."""
    return [
        model_pb2.InputDescription(
            name=f"{name}.{option}",
            kind=_PLAIN_KINDS.get(type(default), model_pb2.INPUT_KIND_UNSPECIFIED),
            default_json=_json_or_empty(default),
            description=f"Option {option} of {type(guider).__name__}.",
            type_hint=type(default).__name__ if default is not None else "",
        )
        for option, default in guider.config.items()
        if not option.startswith("_") and not (is_first and option == "guidance_scale")
    ]


def _size_multiple(pipeline: Any) -> int:
    """Pixels that one token of the denoiser covers: the VAE's factor times the denoiser's patch."""
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
    roles_by_name = {
        name: [role_name(role) for role, names in names_by_role.items() if name in names]
        for name in whole.pipeline._component_specs
    }
    return [
        model_pb2.ComponentDescription(
            name=name, class_name=getattr(spec.type_hint, "__name__", ""), roles=roles_by_name[name]
        )
        for name, spec in whole.pipeline._component_specs.items()
        if roles_by_name[name]
    ]


def _json_or_empty(value: object) -> str:
    try:
        return "" if value is None else json.dumps(value)
    except (TypeError, ValueError):
        return ""
