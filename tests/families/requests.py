"""A job's request, from diffusers' own arguments."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import safetensors.torch
import torch
from google.protobuf import json_format

from tests.families.cases import PROMPT, SEED, Case
from triptych.v1.job_pb2 import (
    MEDIA_KIND_IMAGE,
    MEDIA_KIND_VIDEO,
    GenerationRequest,
    InputList,
    InputMap,
    InputValue,
    Media,
    TensorFile,
)

_PLAIN = {bool: "bool_value", int: "int_value", float: "number_value", str: "string_value"}
_FIELDS = {"negative_prompt", "height", "width", "num_frames", "num_inference_steps"}


def request_of(case: Case, **fields: Any) -> GenerationRequest:
    """The request: fields of its own, and the other arguments as trees whose files hold each sample exactly."""
    own = {name: value for name, value in case.arguments.items() if name in _FIELDS}
    inputs = {name: value_of(value) for name, value in case.arguments.items() if name not in own}
    adapters = [{"name": name, "weight": weight} for name, weight in case.adapters]
    content = {"prompt": PROMPT, "seed": SEED, "adapters": adapters, **own, **fields}
    return json_format.ParseDict(content, GenerationRequest(inputs=inputs))


def value_of(value: Any) -> InputValue:
    """An argument as a tree."""
    if isinstance(value, PIL.Image.Image):
        return InputValue(media=Media(data=_png(value), kind=MEDIA_KIND_IMAGE))
    if isinstance(value, torch.Tensor):
        return InputValue(tensor=TensorFile(data=safetensors.torch.save({"value": value})))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return value_of({name: item for name, item in fields.items() if item is not None})
    if isinstance(value, dict):
        return InputValue(map_value=InputMap(fields={name: value_of(item) for name, item in value.items()}))
    if isinstance(value, list) and len(value) > 1 and all(map(_is_frame, value)):
        return InputValue(media=Media(data=_gif(value), kind=MEDIA_KIND_VIDEO))
    if isinstance(value, list):
        return InputValue(list_value=InputList(items=[value_of(item) for item in value]))
    (name,) = (name for kind, name in _PLAIN.items() if type(value) is kind)
    return InputValue(**{name: value})


def _is_frame(value: Any) -> bool:
    """Whether it is one of a clip's: of so few colours that a GIF holds it."""
    return isinstance(value, PIL.Image.Image) and value.getcolors(255) is not None


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _gif(frames: Sequence[PIL.Image.Image]) -> bytes:
    """The frames' colours are few, so that none is changed."""
    colours = np.unique(np.concatenate([np.asarray(frame.convert("RGB")).reshape(-1, 3) for frame in frames]), axis=0)
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes() + bytes(768 - colours.size))
    indexed = [frame.convert("RGB").quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=40, disposal=1, optimize=False)
    return file.getvalue()
