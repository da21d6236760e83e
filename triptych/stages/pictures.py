"""Whether an input of a pipeline takes several pictures, and whether it takes their transparency."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import PIL.Image

from triptych.media.decoding.headers import MASK
from triptych.stages.library import ModularPipelineBlocks

RGBA_CHANNELS = 4
_CHANNEL_OPTIONS = ("in_channels", "input_channels")
"""How the configurations of VAEs call the channels of a picture."""


def takes_several(name: str, hint: Any, blocks: ModularPipelineBlocks) -> bool:
    """Whether an input of this type takes a list of pictures that go into one result.

    Almost every hint of diffusers' says `PIL.Image.Image | list[PIL.Image.Image]`, also where the blocks make one
    tensor of all pictures and then expect one picture for each prompt. Blocks that really take several name them in
    the plural, or keep a list with an item for each, such as `condition_images` or `image_height`.
    """
    if not any(typing.get_origin(option) in (list, tuple) for option in pictures_of(hint)):
        return False
    return name.endswith("images") or any(map(_is_kept_apart, _values(blocks)))


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


def _values(blocks: ModularPipelineBlocks) -> Iterator[Any]:
    """What the innermost blocks take and make."""
    if blocks.sub_blocks:
        for block in blocks.sub_blocks.values():
            yield from _values(block)
    else:
        yield from blocks.inputs
        yield from blocks.intermediate_outputs
