"""What a pipeline accepts, read off its blocks and configs, as a `ModelDescription`."""

from __future__ import annotations

import json
import types
import typing
from typing import TYPE_CHECKING, Any

import PIL.Image

from triptych.errors import ModelInvalid
from triptych.roles import role_name
from triptych.stages.library import INPUT_PARAM_TEMPLATES, BaseGuidance, InputParam, diffusers
from triptych.stages.step_counts import steps_max
from triptych.v1 import model_pb2

if TYPE_CHECKING:
    from triptych.stages.whole import Whole

_SPATIAL_FACTORS = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
"""Pixels a latent covers, by the names that diffusers' pipelines give it; the first that exists counts."""

_TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""Frames a latent covers."""

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
"""Inputs whose default may be the pipeline's property `default_` and the name."""

_REQUIRABLE_KINDS = (model_pb2.INPUT_KIND_TEXT, model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)
"""Kinds for which the blocks' word `required` can be believed. Of numbers and tensors some blocks require what other
blocks fill in; what is really missing there, the block says when the job runs."""


def describe(whole: Whole) -> model_pb2.ModelDescription:
    """The description of an opened pipeline.

    Raises `ModelInvalid` where a component's configuration can't be read or the folder recommends a default for an
    input that doesn't exist.
    """
    pipeline = whole.inspection()
    inputs = [describe_input(parameter) for parameter in whole.pipeline._blocks.inputs if parameter.name]
    guiders = _guiders(whole)
    for name, guider in guiders.items():
        inputs.extend(_guider_options(name, guider, is_first=name == next(iter(guiders))))
    description = model_pb2.ModelDescription(
        model=whole.model,
        revision=whole.revision,
        pipeline_class=type(whole.pipeline).__name__,
        diffusers_version=diffusers.__version__,
        config_digest=whole.config_digest(),
        inputs=inputs,
        outputs=whole.outputs(),
        size_multiple=_size_multiple(pipeline),
        frame_multiple=_first_factor(pipeline, _TEMPORAL_FACTORS) if _has(inputs, "num_frames") else 0,
        components=_components(whole),
        num_inference_steps_max=steps_max(whole.components().get("scheduler")),
    )
    _add_computed_defaults(pipeline, inputs_of=description)
    scale = getattr(next(iter(guiders.values()), None), "guidance_scale", None)
    if isinstance(scale, (int, float)) and not _has(inputs, "guidance_scale"):
        description.guidance_scale = scale
    recommended = whole.recommendations()
    known = {described.name for described in inputs} | {"guidance_scale", "frames_per_second"}
    if unknown := sorted(set(recommended) - known):
        raise ModelInvalid(f"triptych.json of {whole.model!r} recommends values for unknown inputs {unknown}")
    description.defaults_json = json.dumps(recommended, sort_keys=True) if recommended else ""
    return description


def _add_computed_defaults(pipeline: Any, inputs_of: model_pb2.ModelDescription) -> None:
    """Sizes and lengths that the blocks take from the pipeline where a request leaves them out."""
    for described in inputs_of.inputs:
        default = getattr(pipeline, f"default_{described.name}", None)
        if described.name in _COMPUTED and not described.default_json and isinstance(default, int):
            described.default_json = json.dumps(default)


def describe_input(parameter: InputParam) -> model_pb2.InputDescription:
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
    )


def kind_of(name: str, hint: Any) -> model_pb2.InputKind.ValueType:
    """The kind of value that a type hint allows a request to carry.

    Pictures win over everything else that a union allows, plain values over tensors. A list of pictures with no
    single picture beside it is a video, and so is whatever takes pictures under a name with `video` in it.
    """
    if hint is None:
        return model_pb2.INPUT_KIND_VIDEO if name.endswith("video") else model_pb2.INPUT_KIND_UNSPECIFIED
    options = [option for option in _options(hint) if option is not types.NoneType]
    pictures = [option for option in options if _is_picture(option)]
    if pictures:
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


def _options(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return list(typing.get_args(hint)) if is_union else [hint]


def _is_picture(option: Any) -> bool:
    return option is PIL.Image.Image or (
        typing.get_origin(option) in (list, tuple) and PIL.Image.Image in typing.get_args(option)
    )


def _holds_object(option: Any) -> bool:
    """Whether a container's items are objects that no JSON value gives, as in `list[torch.Tensor]`."""
    items = [plain for item in typing.get_args(option) for plain in _options(item)]
    return any(isinstance(item, type) and item not in (*_PLAIN_KINDS, types.NoneType) for item in items)


def _guiders(whole: Whole) -> dict[str, Any]:
    components = whole.components()
    found = {name: components.get(name) for name, spec in whole.pipeline._component_specs.items() if _is_guider(spec)}
    return {name: guider for name, guider in found.items() if guider is not None}


def _is_guider(spec: Any) -> bool:
    return isinstance(spec.type_hint, type) and issubclass(spec.type_hint, BaseGuidance)


def _guider_options(name: str, guider: Any, *, is_first: bool) -> list[model_pb2.InputDescription]:
    """Options of a guider as inputs named `component.option`. The first guider's scale is the request's own field."""
    options = []
    for option, default in guider.config.items():
        if option.startswith("_") or (is_first and option == "guidance_scale"):
            continue
        kind = _PLAIN_KINDS.get(type(default), model_pb2.INPUT_KIND_UNSPECIFIED)
        options.append(
            model_pb2.InputDescription(
                name=f"{name}.{option}",
                kind=kind,
                default_json=_json_or_empty(default),
                description=f"Option {option} of {type(guider).__name__}.",
                type_hint=type(default).__name__ if default is not None else "",
            )
        )
    return options


def _size_multiple(pipeline: Any) -> int:
    """Pixels that one token of the denoiser covers: the VAE's factor times the denoiser's patch."""
    factor = _first_factor(pipeline, _SPATIAL_FACTORS)
    config = getattr(getattr(pipeline, "transformer", None), "config", {})
    patch = config.get("patch_size", 1)
    if isinstance(patch, (list, tuple)):
        patch = patch[-1]
    return factor * patch if isinstance(patch, int) else factor


def _first_factor(pipeline: Any, names: tuple[str, ...]) -> int:
    for name in names:
        factor = getattr(pipeline, name, None)
        if isinstance(factor, (int, float)) and factor >= 1:
            return int(factor)
    return 0


def _components(whole: Whole) -> list[model_pb2.ComponentDescription]:
    described = []
    for name, spec in whole.pipeline._component_specs.items():
        roles = [role for role in whole.blocks if name in whole.component_names(role)]
        if roles:
            described.append(
                model_pb2.ComponentDescription(
                    name=name,
                    class_name=getattr(spec.type_hint, "__name__", ""),
                    roles=[role_name(role) for role in roles],
                )
            )
    return described


def _has(inputs: list[model_pb2.InputDescription], name: str) -> bool:
    return any(described.name == name for described in inputs)


def _json_or_empty(value: object) -> str:
    try:
        return "" if value is None else json.dumps(value)
    except (TypeError, ValueError):
        return ""
