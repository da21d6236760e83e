"""One frame rate for the model and the file: the one that is told decides both, and two that differ are refused.

In this order: the request's `frames_per_second` or its parameter for the model's own input; the folder's default for
either; the pipeline's default of the input, or its own fixed rate; 16. An input is a rate by its name. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.model.costs import is_number
from triptych.model.description import Description
from triptych.v1 import job_pb2, model_pb2

FRAMES_PER_SECOND_DEFAULT = 16.0
"""Wan's rate, for models that don't say theirs."""
FRAMES_PER_SECOND_MAX = 240.0
"""Fastest encoded video; players don't go beyond."""
FRAMES_PER_SECOND_MIN = 0.1
"""Slowest: ten seconds a frame. PNG's and GIF's counters of a frame's time end at about a minute."""
RATE_INPUTS = ("frame_rate", "fps")
"""What diffusers' pipelines call the rate of the video that they make. Other rates are of what they are given."""
FIELD = "frames_per_second"
VIDEOS = "videos"
"""The output that plays at a rate."""

_ACCEPTED = f"{FRAMES_PER_SECOND_MIN:g} to {FRAMES_PER_SECOND_MAX:g}"


def rate_input(description: Description) -> model_pb2.InputDescription | None:
    """The model's own input for the rate, where it has one."""
    return next((described for name, described in description.inputs.items() if name in RATE_INPUTS), None)


def frames_per_second(request: job_pb2.GenerationRequest, message: model_pb2.ModelDescription) -> float:
    """The rate of a valid request's video."""
    description = Description(message)
    fields = request.parameters.fields.items()
    parameters: dict[str, float] = {
        name: value.number_value for name, value in fields if value.HasField("number_value")
    }
    for name, tree in request.inputs.items():
        if (kind := tree.WhichOneof("kind")) in ("int_value", "number_value"):
            parameters[name] = float(getattr(tree, kind))
    told = _told(request.frames_per_second, parameters, description, description.defaults)
    return float(told) if _is_rate(told) else FRAMES_PER_SECOND_DEFAULT


def told(field: float, parameters: Mapping[str, Any], description: Description) -> float:
    """The rate that the request or the model tells; 0 where neither does."""
    found = _told(field, parameters, description, description.defaults)
    return float(found) if _is_rate(found) else 0.0


def input_values(field: float, parameters: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """The model's own input for the rate with its value, where the request or the folder tells one."""
    described = rate_input(description)
    told = _told(field, parameters, description, description.recommended)
    if described is None or told is None:
        return {}
    return {described.name: int(told) if described.kind == model_pb2.INPUT_KIND_INTEGER else float(told)}


def check(field: float, parameters: Mapping[str, Any], places: Mapping[str, str], description: Description) -> None:
    """Raise InvalidRequest for a rate that no file or model has, and for two. `places` say where inputs were given."""
    described = rate_input(description)
    if field and not _is_rate(field):  # refuses NaN, too
        raise InvalidRequest(FIELD, field, f"{_ACCEPTED}, or 0 for the model's own")
    if described is None:
        if field and VIDEOS not in description.message.outputs:
            raise InvalidRequest(FIELD, field, "0; this pipeline makes no video")
        return
    name = places.get(described.name, f"parameters.{described.name}")
    given = parameters.get(described.name)
    if is_number(given) and not _is_rate(given):
        raise InvalidRequest(name, given, _ACCEPTED)
    if field and is_number(given) and field != given:
        raise InvalidRequest(name, given, f"{field:g}, the request's {FIELD}; one rate is the video's and the file's")
    if field and described.kind == model_pb2.INPUT_KIND_INTEGER and not field.is_integer():
        raise InvalidRequest(FIELD, field, f"a whole number; it is the model's {described.name}, too")


def check_recommended(description: Description) -> None:
    """Raise ModelInvalid where a model's folder recommends what `check` would refuse."""
    described = rate_input(description)
    names = (FIELD, described.name if described is not None else FIELD)
    rates = {name: rate for name in names if (rate := description.recommended.get(name)) is not None}
    shown = " and ".join(f"{name} {rate!r}" for name, rate in rates.items())
    where = f"triptych.json of {description.message.model!r} recommends {shown}"
    if not all(_is_rate(rate) for rate in rates.values()):
        raise ModelInvalid(f"{where}; accepted: {_ACCEPTED}")
    if len(set(rates.values())) > 1:
        raise ModelInvalid(f"{where}; accepted: one rate, the video's and the file's")
    is_whole = all(float(rate).is_integer() for rate in rates.values())
    if described is not None and described.kind == model_pb2.INPUT_KIND_INTEGER and not is_whole:
        raise ModelInvalid(f"{where}; accepted: a whole number, as the pipeline's {described.name} is one")


def _is_rate(value: object) -> bool:
    return is_number(value) and FRAMES_PER_SECOND_MIN <= value <= FRAMES_PER_SECOND_MAX


def _told(field: float, parameters: Mapping[str, Any], description: Description, defaults: Mapping[str, Any]) -> Any:
    described = rate_input(description)
    own = described.name if described is not None else ""
    given = parameters.get(own)
    told = (given if is_number(given) else None, defaults.get(FIELD), defaults.get(own))
    return field or next((rate for rate in told if rate is not None), None)
