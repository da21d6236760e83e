"""One input of a pipeline: what a request gives for it, and options of guiders and schedulers as inputs."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import PIL.Image
import torch

from triptych.media.decoding.headers import MASK
from triptych.model.fields import GENERATOR
from triptych.stages import hints
from triptych.stages.handoff import walk
from triptych.stages.hints import json_or_empty, meaning, options_of
from triptych.stages.ip_adapters import PICTURE_INPUT
from triptych.stages.library import INPUT_PARAM_TEMPLATES, InputParam, ModularPipelineBlocks
from triptych.v1 import model_pb2

RGBA_CHANNELS = 4
_CHANNEL_OPTIONS = ("in_channels", "input_channels")
"""How the configurations of VAEs call the channels of a picture."""
_REQUIRABLE_KINDS = (model_pb2.INPUT_KIND_TEXT, model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)
"""Kinds whose `required` can be trusted. Some blocks require numbers and tensors that others fill in; where one is
really missing, its block says so when the job runs."""
_NUMBERED = re.compile(r"_\d+$")
"""Ends the names of inputs for the second and third text encoder, which the glossary lacks."""
_REASONS: dict[object, str] = {
    torch.Generator: "nothing here; the request's seed, or its seeds, make the generators",
    torch.dtype: "nothing; the workers' own dtype counts",
}
"""Why a request can't give objects of these classes."""


def describe_input(parameter: InputParam, blocks: ModularPipelineBlocks) -> model_pb2.InputDescription:
    """One input of the blocks. Where a block gives no type, diffusers' glossary of names, then its default, decides."""
    name = parameter.name
    about = " ".join((parameter.description or "").split())
    hint = _hint_of(parameter)
    reason = _REASONS.get(torch.Generator if name == GENERATOR else hint, "")
    leaves = [block for block in walk(blocks) if not block.sub_blocks]
    meant = meaning(name, hint, hints.named_classes(name, about, leaves))
    if meant.kind == model_pb2.INPUT_KIND_IMAGE:
        meant = meant._replace(arity=_pictures_arity(name, hint, blocks))
    if meant.kind == model_pb2.INPUT_KIND_TEXT and takes_texts(name, leaves):
        meant = meant._replace(arity=model_pb2.INPUT_ARITY_ONE_OR_LIST)
    if meant.kind == model_pb2.INPUT_KIND_INTERNAL and not reason:
        reason = f"nothing; no file and no JSON gives {hints.shown(hint)}"
    several = meant.arity in (model_pb2.INPUT_ARITY_LIST, model_pb2.INPUT_ARITY_ONE_OR_LIST)
    kind = model_pb2.INPUT_KIND_INTERNAL if reason else meant.kind
    return model_pb2.InputDescription(
        name=name,
        kind=kind,
        item_kinds=() if reason else meant.items,
        arity=meant.arity,
        required=bool(parameter.required) and kind in _REQUIRABLE_KINDS,
        default_json=json_or_empty(parameter.default),
        description=about,
        type_hint=hints.shown(hint),
        takes_several=kind == model_pb2.INPUT_KIND_IMAGE and several,
        fields=hints.described_fields(meant.classes),
        choices=hints.choices_of(hint),
        not_given_reason=reason,
    )


def classes_of(parameter: InputParam, blocks: ModularPipelineBlocks) -> tuple[type, ...]:
    """The classes of the objects that an input takes, of which its description tells the fields."""
    leaves = [block for block in walk(blocks) if not block.sub_blocks]
    about = parameter.description or ""
    return meaning(parameter.name, _hint_of(parameter), hints.named_classes(parameter.name, about, leaves)).classes


def _hint_of(parameter: InputParam) -> Any:
    glossary = (INPUT_PARAM_TEMPLATES.get(name, {}) for name in (parameter.name, _NUMBERED.sub("", parameter.name)))
    hint = parameter.type_hint or next((found for one in glossary if (found := one.get("type_hint"))), None)
    return type(parameter.default) if hint is None and parameter.default is not None else hint


def takes_texts(name: str, leaves: list[ModularPipelineBlocks]) -> bool:
    """Whether a block takes a list of texts, one for each result: hints say `str` for both, so its code is read."""
    asks = rf"isinstance\([\w.]*\b{name}, (list|\(str, list\))\)"
    makes = rf"list\([\w.]*\b{name}\)|\[{name}\] if isinstance\({name}, str"
    taking = (block for block in leaves if any(parameter.name == name for parameter in block.inputs))
    return any(re.search(f"{asks}|{makes}", inspect.getsource(type(block))) for block in taking)


def _pictures_arity(name: str, hint: Any, blocks: ModularPipelineBlocks) -> model_pb2.InputArity.ValueType:
    """A name in the plural is a list's, also of one."""
    if name.endswith("images"):
        return model_pb2.INPUT_ARITY_LIST
    return model_pb2.INPUT_ARITY_ONE_OR_LIST if takes_several(name, hint, blocks) else model_pb2.INPUT_ARITY_ONE


def takes_several(name: str, hint: Any, blocks: ModularPipelineBlocks) -> bool:
    """Whether an input of this type takes a list of pictures that go into one result.

    Almost every hint of diffusers' says `PIL.Image.Image | list[PIL.Image.Image]`, also where the blocks make one
    tensor of all pictures and then expect one picture for each prompt. Blocks that really take several name them in
    the plural, or keep a list with an item for each, such as `condition_images` or `image_height`. Several IP-Adapters
    take a picture each.
    """
    if not any(typing.get_origin(option) in (list, tuple) for option in pictures_of(hint)):
        return False
    innermost = [block for block in walk(blocks) if not block.sub_blocks]
    values = (value for block in innermost for value in (*block.inputs, *block.intermediate_outputs))
    return name.endswith("images") or name == PICTURE_INPUT or any(map(_is_kept_apart, values))


def takes_alpha(name: str, pipeline: Any) -> bool:
    """Whether an input's pictures go into a VAE of four channels: red, green, blue and transparency."""
    config = getattr(getattr(pipeline, "vae", None), "config", {})
    return MASK not in name and any(config.get(key) == RGBA_CHANNELS for key in _CHANNEL_OPTIONS)


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
