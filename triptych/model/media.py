"""A request's `media`: which files the model takes, as what, and how large their pixels may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import File
from triptych.model.description import MEDIA_KINDS, Description, accepted_names
from triptych.v1 import job_pb2, model_pb2

MEDIA_COUNT_MAX = 64
"""Most images and videos in one request."""
MASK_INPUT = "mask_image"
CROP_INPUT = "padding_mask_crop"
"""Names of diffusers: with the second a pipeline paints a rectangle around what the first shows, and nothing else."""


def check(request: job_pb2.GenerationRequest, description: Description) -> None:
    """Raise InvalidRequest for files that the model doesn't take, or too many, and for one that is missing."""
    if len(request.media) > MEDIA_COUNT_MAX:
        raise InvalidRequest("media", f"{len(request.media)} files", f"at most {MEDIA_COUNT_MAX}")
    takers = {name: one for name, one in description.inputs.items() if one.kind in MEDIA_KINDS}
    for media in request.media:
        if media.name not in takers:
            raise InvalidRequest("media.name", media.name, accepted_names(media.name, takers))
        if not media.data:
            raise InvalidRequest(f"media.{media.name}", media.data, "the bytes of a picture or video file")
    counts = Counter(media.name for media in request.media)
    for name, described in takers.items():
        if counts[name] > 1 and not described.takes_several:
            raise InvalidRequest(f"media.{name}", f"{counts[name]} files", "one; this input takes no list")
        if described.required and not counts[name]:
            raise InvalidRequest(f"media.{name}", None, "a picture or video; this pipeline needs one")


def files(request: job_pb2.GenerationRequest, description: Description, values: Mapping[str, Any]) -> tuple[File, ...]:
    """The request's media, in order, to be decoded; `values` are the request's over the model's defaults."""
    sides = (values.get(name) for name in ("height", "width"))
    height, width = (int(side) if isinstance(side, int | float) and side > 0 else 0 for side in sides)
    is_cropped = isinstance(values.get(CROP_INPUT), int | float)
    taken = [(media, description.inputs[media.name]) for media in request.media]
    return tuple(
        File(
            media.name,
            is_video=described.kind == model_pb2.INPUT_KIND_VIDEO,
            data=media.data,
            frame_pixels=height * width,
            takes_alpha=described.takes_alpha,
            is_crop_mask=is_cropped and media.name == MASK_INPUT,
        )
        for media, described in taken
    )
