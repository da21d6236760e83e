"""A job's request, from diffusers' own arguments."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from google.protobuf import json_format

from tests.families.cases import PROMPT, SEED, Case
from triptych.v1.job_pb2 import GenerationRequest, Media

_FIELDS = {"negative_prompt", "height", "width", "num_frames", "num_inference_steps"}


def request_of(case: Case, **fields: Any) -> GenerationRequest:
    """The request: its own fields, parameters, and media as files that hold each sample exactly."""
    plain = {name: value for name, value in case.arguments.items() if not _files(value)}
    own = {name: value for name, value in plain.items() if name in _FIELDS}
    content = {"prompt": PROMPT, "seed": SEED, **own, "parameters": {n: v for n, v in plain.items() if n not in own}}
    media = [Media(name=name, data=data) for name, value in case.arguments.items() for data in _files(value)]
    return json_format.ParseDict({**content, **fields}, GenerationRequest(media=media))


def _files(value: Any) -> list[bytes]:
    """A picture's file, a clip's, or those of pictures that aren't of one size or noise."""
    if isinstance(value, PIL.Image.Image):
        return [_png(value)]
    if not isinstance(value, list) or not value or not isinstance(value[0], PIL.Image.Image):
        return []
    return [_gif(value)] if _is_clip(value) else [_png(one) for one in value]


def _is_clip(pictures: Sequence[PIL.Image.Image]) -> bool:
    return all(one.getcolors(255) is not None for one in pictures)


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _gif(frames: Sequence[PIL.Image.Image]) -> bytes:
    """The frames' colours are few, so that none is changed."""
    colours = np.unique(np.concatenate([np.asarray(frame).reshape(-1, 3) for frame in frames]), axis=0)
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes() + bytes(768 - colours.size))
    indexed = [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=40, disposal=1, optimize=False)
    return file.getvalue()
