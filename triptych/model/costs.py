"""What a request may cost: texts, parameters, work and the size of results. All bounds stand in docs/costs.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from google.protobuf import struct_pb2

from triptych.errors import InvalidRequest
from triptych.model.description import Description
from triptych.v1 import model_pb2

PROMPT_BYTES_MAX = 64 << 10
"""Longest prompt, or other text, in bytes of UTF-8: far over what any text encoder reads, small enough to keep in the
database."""
PARAMETERS_DEPTH_MAX = 16
"""Deepest nesting of a value in `parameters`: no known input goes beyond four. Python's own recursion is not far."""

PARAMETERS_VALUES_MAX = 10_000
"""Most values in `parameters`, at any depth: ten lists of one number for each of `STEPS_MAX` steps. They are checked
where all other calls wait, and so many take milliseconds."""
WORK_INPUTS = ("num_frames", "height", "width", "num_inference_steps")
"""What multiplies the work of a job, together with `num_outputs`."""
RANGES = {"max_sequence_length": (1, 4096), "clip_skip": (0, 30), "strength": (1e-3, 1), "padding_mask_crop": (0, 8192)}
"""What such parameters may be, of any model: four times the longest text that a known encoder reads; the layers of the
largest CLIP but two; one step of a thousand; a side."""
SIZES = re.compile(r"^(num|max)_(?!.*condition)|_(length|factor|resolution|tokens)$|^(layers|resolution|batch_size)$")
"""Names of whole numbers that are at least 1, unless their default is 0. No pipeline has one below 0."""
OPTION_MAX = 10_000
"""Largest whole number among the options of guiders and schedulers: a scheduler's tables have an item for each of its
training timesteps, of which known ones have a tenth."""
INTEGER_MAX = 2**53
"""Beyond it a Struct's doubles skip whole numbers."""
FRACTIONS = re.compile(r"eta|decode_timestep|control_guidance_(start|end)|\w*top_p|guidance_rescale")
POSITIVE = re.compile(r"(^|_)(fps|rate|duration|seconds)$")
"""Names of numbers that divide, or that last."""
NUMBER_MIN = 1e-3
PIXEL_BYTES = 12
"""Bytes of a pixel as decoders make it: three float32."""

Work = Mapping[str, float]
"""What multiplies the work of a job: outputs, frames, sides, steps."""


def work_of(num_outputs: int, values: Mapping[str, Any]) -> Work:
    """The factors of a job's work; `values` are the request's over the model's defaults.

    A factor without a value counts as 1; what a pipeline computes is among the defaults.
    """
    given = {name: values.get(name) for name in WORK_INPUTS}
    sizes = {name: value if is_number(value) and value > 0 else 1 for name, value in given.items()}
    return {"num_outputs": max(1, num_outputs), **sizes}


def check_work(work: Work, work_max: float) -> None:
    """Raise InvalidRequest for more outputs x frames x pixels x steps than `work_max`; 0 is no limit."""
    _check_product(work, work_max, "{:g}", "work_max")


def check_result(work: Work, result_bytes_max: float) -> None:
    """Raise InvalidRequest for more bytes of pixels than `result_bytes_max`; 0 is no limit.

    These are the pixels of all frames of all outputs before they are encoded, the least that a decoder holds.
    """
    _check_product(_sizes(work), result_bytes_max, "{:g} bytes of pixels", "result_bytes_max", PIXEL_BYTES)


def pixels_of(work: Work) -> float:
    """Outputs x frames x pixels: what a job's memory grows with."""
    return math.prod(_sizes(work).values())


def _sizes(work: Work) -> Work:
    return {name: factor for name, factor in work.items() if name != "num_inference_steps"}


def _check_product(work: Work, most: float, unit: str, setting: str, scale: int = 1) -> None:
    product = math.prod(work.values()) * scale
    if most and product > most:
        shown = " x ".join(f"{factor:g}" for factor in work.values())
        accepted = f"at most {most:g} (the controller's {setting})"
        raise InvalidRequest(" x ".join(work), f"{shown} = {unit.format(product)}", accepted)


def check_parameters_size(parameters: struct_pb2.Struct) -> None:
    """Raise InvalidRequest for parameters that are too deep, too many or too long, before anything is built of them.

    A value's children are counted before they are visited, so no more of them wait than the bound allows.
    """
    count = _counted(0, len(parameters.fields))
    waiting = [(name, value, 1) for name, value in parameters.fields.items()]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > PARAMETERS_DEPTH_MAX:
            accepted = f"at most {PARAMETERS_DEPTH_MAX}"
            raise InvalidRequest(f"parameters.{name}", f"nested {depth} deep or more", accepted)
        if value.HasField("string_value"):
            check_text_bytes(f"parameters.{name}", value.string_value)
        is_struct = value.HasField("struct_value")
        children = value.struct_value.fields.values() if is_struct else value.list_value.values
        count = _counted(count, len(children))
        waiting.extend((name, child, depth + 1) for child in children)


def _counted(count: int, more: int) -> int:
    if count + more > PARAMETERS_VALUES_MAX:
        accepted = f"at most {PARAMETERS_VALUES_MAX}, at all depths together"
        raise InvalidRequest("parameters", f"{count + more} values or more", accepted)
    return count + more


def check_ranges(
    requested: Mapping[str, Any], places: Mapping[str, str], description: Description, steps: float
) -> None:
    """Raise InvalidRequest for numbers that no pipeline can work with, and that it would notice late, if at all.

    The request's own fields have bounds of their own (`fields`).
    """
    for name, described in description.inputs.items():
        if is_number(requested.get(name)) and places.get(name, name) != name and name not in WORK_INPUTS:
            least, most = RANGES.get(name) or _range_of(described, description.defaults.get(name))
            if not least <= requested[name] <= most:
                accepted = f"{least:g} or more" if most == math.inf else f"{least:g} to {most}"
                raise InvalidRequest(places[name], f"{requested[name]:g}", accepted)
    strength = requested.get("strength")
    if is_number(strength) and 1 < steps < 1 / strength - 1e-6:
        accepted = f"{1 / steps:g} to 1, so that one of {steps:g} steps is left"
        raise InvalidRequest(places["strength"], f"{strength:g}", accepted)


def _range_of(described: model_pb2.InputDescription, default: Any) -> tuple[float, float]:
    """What an input's kind and name say of its values."""
    if described.kind == model_pb2.INPUT_KIND_INTEGER:
        is_size = SIZES.search(described.name.rpartition(".")[2]) and not (isinstance(default, int) and default < 1)
        return (1 if is_size else 0), OPTION_MAX if "." in described.name else INTEGER_MAX
    if FRACTIONS.fullmatch(described.name):
        return 0, 1
    return (NUMBER_MIN if POSITIVE.search(described.name) else -math.inf), math.inf


def check_text_bytes(field: str, text: str) -> None:
    """Raise InvalidRequest for a text that is too long."""
    size_bytes = len(text.encode())
    if size_bytes > PROMPT_BYTES_MAX:
        raise InvalidRequest(field, f"{size_bytes} bytes", f"at most {PROMPT_BYTES_MAX} bytes of UTF-8")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a number; `True` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
