"""What a request gives by the names of the model's inputs: whether the model has them, and takes these values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import VIDEO, File
from triptych.model import accepting, guidance
from triptych.model.description import MEDIA_KINDS, OUTPUT_COUNT_INPUT, Description, Given, accepted_names
from triptych.model.fields import INPUT_FIELDS
from triptych.v1 import model_pb2

MASK_INPUT = "mask_image"
CROP_INPUT = "padding_mask_crop"
"""Names of diffusers: with the second a pipeline paints a rectangle around what the first shows, and nothing else."""


def parse(given: Given, description: Description) -> dict[str, Any]:
    """What is given, as the pipeline is to get it; files are `File` and `Tensor`.

    A Struct's numbers are doubles: whole ones become int unless the input's type says float. Raises `InvalidRequest`
    for names that don't exist and values of another kind.
    """
    values = {}
    for name, value in given.values.items():
        place = given.places[name]
        described = guidance.option_of(name, given.values, description)
        if place == name or (described is None and name == "guidance_scale" and place.startswith("inputs.")):
            values[name] = value  # a field of the request, or its longer form: `fields` checks it
            continue
        if described is None or (place.startswith("media.") and not accepting.is_media(described)):
            raise _unknown(given, name, description)
        if accepted := _said_elsewhere(name, place, described):
            raise InvalidRequest(place, _shown(value), accepted)
        if place.startswith("media."):
            _check_count(value, described, place)
        else:
            value = value if "float" in described.type_hint else accepting.in_whole_numbers(value)
        values[name] = accepting.accepted(described, value, place)
    return values


def _unknown(given: Given, name: str, description: Description) -> InvalidRequest:
    """The error for a name that no input has, or none that takes files."""
    place = given.places[name]
    if place.startswith("media."):
        takers = [one.name for one in description.inputs.values() if accepting.is_media(one)]
        return InvalidRequest("media.name", name, accepted_names(name, takers))
    return InvalidRequest(place, _shown(given.values[name]), accepted_names(name, _settable(description)))


def _said_elsewhere(name: str, place: str, described: model_pb2.InputDescription) -> str:
    """Where an input is to be given, if not here."""
    if OUTPUT_COUNT_INPUT.fullmatch(name):
        return "nothing here; set the request's own field num_outputs"
    if place.startswith("parameters.") and described.kind in MEDIA_KINDS:
        return "nothing here; pictures, videos and sounds go in media or inputs"
    return ""


def check_required(given: Given, description: Description) -> None:
    """Raise InvalidRequest for a text or a file that the model can't do without, and that is missing."""
    for name, described in description.inputs.items():
        if not described.required or given.values.get(name) is not None:
            continue
        if accepting.is_media(described):
            raise InvalidRequest(f"media.{name}", None, "a picture, video or sound; this pipeline needs one")
        if described.kind == model_pb2.INPUT_KIND_TEXT and name != "prompt":
            raise InvalidRequest(f"parameters.{name}", None, "text; this pipeline needs it")


def _check_count(value: Any, described: model_pb2.InputDescription, place: str) -> None:
    count = len(value) if isinstance(value, list) else 1
    takes_frames = model_pb2.INPUT_KIND_VIDEO in (described.kind, *described.item_kinds)
    takes_list = (
        takes_frames
        or described.takes_several
        or described.arity
        in (
            model_pb2.INPUT_ARITY_LIST,
            model_pb2.INPUT_ARITY_ONE_OR_LIST,
        )
    )
    if count > 1 and not takes_list:
        raise InvalidRequest(place, f"{count} files", "one; this input takes no list")


def _settable(description: Description) -> list[str]:
    hidden = (model_pb2.INPUT_KIND_INTERNAL, *MEDIA_KINDS)
    return [
        name
        for name, described in description.inputs.items()
        if described.kind not in hidden and name not in INPUT_FIELDS and OUTPUT_COUNT_INPUT.fullmatch(name) is None
    ]


def _shown(value: Any) -> object:
    """For a message: 1, not 1.0, where 1 was given; and no file."""
    return accepting.in_whole_numbers(accepting.shown(value))


def sized(values: Mapping[str, Any], in_force: Mapping[str, Any], frames_per_second: float) -> dict[str, Any]:
    """The values, with their files told how large the job makes them, and at which rate its videos play.

    `in_force` are over the model's defaults. A rate of 0 is none.
    """
    sides = (in_force.get(name) for name in ("height", "width"))
    height, width = (int(side) if isinstance(side, int | float) and side > 0 else 0 for side in sides)
    is_cropped = isinstance(in_force.get(CROP_INPUT), int | float)

    def with_size(file: File) -> File:
        return file._replace(
            frame_pixels=height * width,
            is_crop_mask=is_cropped and file.name == MASK_INPUT,
            frames_per_second=frames_per_second if file.kind == VIDEO else 0,
        )

    return {name: accepting.replaced(value, with_size) for name, value in values.items()}
