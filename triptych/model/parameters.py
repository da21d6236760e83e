"""What a request gives by the names of the model's inputs: `parameters`, a Struct, and the files in `media`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import IMAGE, VIDEO, File
from triptych.model.description import MEDIA_KINDS, OUTPUT_COUNT_INPUT, Description, accepted_names
from triptych.model.fields import INPUT_FIELDS
from triptych.v1 import job_pb2, model_pb2

MEDIA_COUNT_MAX = 64
"""Most images and videos in one request."""
MASK_INPUT = "mask_image"
CROP_INPUT = "padding_mask_crop"
"""Names of diffusers: with the second a pipeline paints a rectangle around what the first shows, and nothing else."""
_ACCEPTED: dict[int, tuple[tuple[type, ...], str]] = {
    model_pb2.INPUT_KIND_TEXT: ((str,), "text"),
    model_pb2.INPUT_KIND_INTEGER: ((int,), "a whole number"),
    model_pb2.INPUT_KIND_NUMBER: ((int, float), "a finite number"),
    model_pb2.INPUT_KIND_BOOLEAN: ((bool,), "true or false"),
    model_pb2.INPUT_KIND_LIST: ((list,), "a list"),
    model_pb2.INPUT_KIND_MAPPING: ((dict,), "a mapping"),
}


def parse(parameters: struct_pb2.Struct, description: Description) -> dict[str, Any]:
    """The parameters by name. A Struct's numbers are doubles: whole ones become int unless the input's type says float.

    Raises `InvalidRequest` for names that don't exist and values of another kind.
    """
    values = {}
    for name, struct_value in parameters.fields.items():
        value = _plain(struct_value)
        if name not in description.inputs:
            accepted = accepted_names(name, _settable(description))
        elif _is_field(name):
            field = name if name in INPUT_FIELDS else "num_outputs"
            accepted = f"nothing here; set the request's own field {field}"
        else:
            values[name] = _converted(description.inputs[name], value)
            continue
        raise InvalidRequest(f"parameters.{name}", _whole(value), accepted)  # shows 1, not 1.0, where 1 was given
    return values


def check_required(parameters: struct_pb2.Struct, description: Description) -> None:
    """Raise InvalidRequest for a text that the model can't do without, and that is missing."""
    for name, described in description.inputs.items():
        is_missing = name != "prompt" and name not in parameters.fields
        if is_missing and described.required and described.kind == model_pb2.INPUT_KIND_TEXT:
            raise InvalidRequest(f"parameters.{name}", None, "text; this pipeline needs it")


def _is_field(name: str) -> bool:
    return name in INPUT_FIELDS or OUTPUT_COUNT_INPUT.fullmatch(name) is not None


def _settable(description: Description) -> list[str]:
    hidden = (model_pb2.INPUT_KIND_INTERNAL, *MEDIA_KINDS)
    inputs = description.inputs.items()
    return [name for name, described in inputs if described.kind not in hidden and not _is_field(name)]


def _converted(described: model_pb2.InputDescription, value: Any) -> Any:
    field = f"parameters.{described.name}"
    if described.kind == model_pb2.INPUT_KIND_INTERNAL:
        raise InvalidRequest(field, value, "nothing; this input is internal to the pipeline")
    if described.kind in MEDIA_KINDS:
        raise InvalidRequest(field, value, "nothing here; pictures and videos go in media")
    if not _finite(value):
        raise InvalidRequest(field, value, "finite numbers")
    value = value if "float" in described.type_hint else _whole(value)
    accepted = _ACCEPTED.get(described.kind)
    if accepted is None or value is None:
        return value
    types, sentence = accepted
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InvalidRequest(field, value, sentence)
    return value


def _plain(value: struct_pb2.Value) -> Any:
    """A Struct's value in Python. Keeps NaN, unlike protobuf's own conversion, so that it can be refused by name."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: _plain(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _finite(value: Any) -> bool:
    """Whether every number in the value is finite, at any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_finite(item) for item in items)


def _whole(value: Any) -> Any:
    """The value with whole doubles as int, at any depth."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


def check_media_count(request: job_pb2.GenerationRequest) -> None:
    """Raise InvalidRequest for too many files."""
    if len(request.media) > MEDIA_COUNT_MAX:
        raise InvalidRequest("media", f"{len(request.media)} files", f"at most {MEDIA_COUNT_MAX}")


def check_media(request: job_pb2.GenerationRequest, description: Description) -> None:
    """Raise InvalidRequest for files that the model doesn't take, or too many, and for one that is missing."""
    check_media_count(request)
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
            VIDEO if described.kind == model_pb2.INPUT_KIND_VIDEO else IMAGE,
            media.data,
            frame_pixels=height * width,
            takes_alpha=described.takes_alpha,
            is_crop_mask=is_cropped and media.name == MASK_INPUT,
        )
        for media, described in taken
    )
