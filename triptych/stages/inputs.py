"""One input of a pipeline: the kind of its values, whether it takes several pictures, and their transparency."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import PIL.Image

from triptych.media.decoding.headers import MASK
from triptych.stages.handoff import walk
from triptych.stages.library import INPUT_PARAM_TEMPLATES, InputParam, ModularPipelineBlocks
from triptych.v1 import model_pb2

RGBA_CHANNELS = 4
_CHANNEL_OPTIONS = ("in_channels", "input_channels")
"""How the configurations of VAEs call the channels of a picture."""
_PLAIN_KINDS: dict[object, model_pb2.InputKind.ValueType] = {
    str: model_pb2.INPUT_KIND_TEXT,
    bool: model_pb2.INPUT_KIND_BOOLEAN,
    int: model_pb2.INPUT_KIND_INTEGER,
    float: model_pb2.INPUT_KIND_NUMBER,
    list: model_pb2.INPUT_KIND_LIST,
    tuple: model_pb2.INPUT_KIND_LIST,
    dict: model_pb2.INPUT_KIND_MAPPING,
}
_REQUIRABLE_KINDS = (model_pb2.INPUT_KIND_TEXT, model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)
"""Kinds whose `required` can be trusted. Some blocks require numbers and tensors that others fill in; where one is
really missing, its block says so when the job runs."""


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


def guider_options(name: str, guider: Any, *, is_first: bool) -> list[model_pb2.InputDescription]:
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


def _json_or_empty(value: object) -> str:
    try:
        return "" if value is None else json.dumps(value)
    except (TypeError, ValueError):
        return ""


def takes_several(name: str, hint: Any, blocks: ModularPipelineBlocks) -> bool:
    """Whether an input of this type takes a list of pictures that go into one result.

    Almost every hint of diffusers' says `PIL.Image.Image | list[PIL.Image.Image]`, also where the blocks make one
    tensor of all pictures and then expect one picture for each prompt. Blocks that really take several name them in
    the plural, or keep a list with an item for each, such as `condition_images` or `image_height`.
    """
    if not any(typing.get_origin(option) in (list, tuple) for option in pictures_of(hint)):
        return False
    innermost = [block for block in walk(blocks) if not block.sub_blocks]
    values = (value for block in innermost for value in (*block.inputs, *block.intermediate_outputs))
    return name.endswith("images") or any(map(_is_kept_apart, values))


def takes_alpha(name: str, pipeline: Any) -> bool:
    """Whether an input's pictures go into a VAE of four channels: red, green, blue and transparency."""
    config = getattr(getattr(pipeline, "vae", None), "config", {})
    return MASK not in name and any(config.get(key) == RGBA_CHANNELS for key in _CHANNEL_OPTIONS)


def options_of(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone; without None."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return [option for option in (typing.get_args(hint) if is_union else (hint,)) if option is not types.NoneType]


def pictures_of(hint: Any) -> list[Any]:
    """The options that are a picture, or a list of pictures."""
    return [
        option
        for option in options_of(hint)
        if option is PIL.Image.Image
        or (typing.get_origin(option) in (list, tuple) and PIL.Image.Image in typing.get_args(option))
    ]


def _is_kept_apart(value: Any) -> bool:
    """Whether a value between blocks is a list with something of each picture."""
    options = options_of(value.type_hint)
    return (
        "image" in (value.name or "")
        and len(options) == 1
        and typing.get_origin(options[0]) is list
        and not pictures_of(options[0])
    )
