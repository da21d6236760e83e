"""What a request may cost: texts, parameters, work and the size of results. All bounds stand in docs/costs.md."""

from __future__ import annotations

import json
import math

from triptych.errors import InvalidRequest
from triptych.v1 import job_pb2, model_pb2

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
PIXEL_BYTES = 12
"""Of a pixel as decoders make it: three float32."""


def work(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription) -> float:
    """Outputs x frames x pixels x steps, with the model's defaults where the request leaves them out.

    What the model says no default of counts as 1; what its pipeline computes is in the description.
    """
    return math.prod(_work_factors(request, description).values())


def _work_factors(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription) -> dict[str, float]:
    inputs = {described.name: described for described in description.inputs}
    recommended = json.loads(description.defaults_json or "{}")
    factors: dict[str, float] = {"num_outputs": max(1, request.num_outputs)}
    for name in WORK_INPUTS:
        value = recommended.get(name)
        if request.HasField(name):  # type: ignore[arg-type]
            value = getattr(request, name)
        elif value is None and name in inputs:
            value = json.loads(inputs[name].default_json or "null")
        factors[name] = value if isinstance(value, int | float) and value > 0 else 1
    return factors


def check_work(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, work_max: float) -> None:
    """Raise InvalidRequest for more `work` than `work_max`."""
    factors = _work_factors(request, description)
    product = math.prod(factors.values())
    if product > work_max:
        field = " x ".join(factors)
        shown = " x ".join(f"{value:g}" for value in factors.values())
        raise InvalidRequest(field, f"{shown} = {product:g}", f"at most {work_max:g} (the controller's work_max)")


def check_result(
    request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, result_bytes_max: float
) -> None:
    """Pixels of all frames of all outputs, before they are encoded: what a decoder must hold at once at the least."""
    factors = _work_factors(request, description)
    del factors["num_inference_steps"]
    product = math.prod(factors.values()) * PIXEL_BYTES
    if product > result_bytes_max:
        shown = " x ".join(f"{value:g}" for value in factors.values())
        raise InvalidRequest(
            " x ".join(factors),
            f"{shown} = {product:g} bytes of pixels",
            f"at most {result_bytes_max:g} (the controller's result_bytes_max)",
        )


def check_parameters_size(request: job_pb2.GenerationRequest) -> None:
    """Bounds depth, number of values and texts, before anything else looks at them, and builds nothing of them: a
    value's children are counted before they are visited, so those that wait are no more than the bound."""
    count = _counted(0, len(request.parameters.fields))
    waiting = [(name, value, 1) for name, value in request.parameters.fields.items()]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > PARAMETERS_DEPTH_MAX:
            raise InvalidRequest(
                f"parameters.{name}", f"nested {depth} deep or more", f"at most {PARAMETERS_DEPTH_MAX}"
            )
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            check_text_bytes(f"parameters.{name}", value.string_value)
        elif kind == "list_value":
            count = _counted(count, len(value.list_value.values))
            waiting.extend((name, inner, depth + 1) for inner in value.list_value.values)
        elif kind == "struct_value":
            count = _counted(count, len(value.struct_value.fields))
            waiting.extend((name, inner, depth + 1) for inner in value.struct_value.fields.values())


def _counted(count: int, more: int) -> int:
    if count + more > PARAMETERS_VALUES_MAX:
        raise InvalidRequest(
            "parameters", f"{count + more} values or more", f"at most {PARAMETERS_VALUES_MAX}, at all depths together"
        )
    return count + more


def check_ranges(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription) -> None:
    """Raise InvalidRequest for numbers that no pipeline can work with, and that it would notice late, if at all."""
    for name, (least, most) in RANGES.items():
        value = request.parameters.fields.get(name)
        if value is not None and value.HasField("number_value") and not least <= value.number_value <= most:
            raise InvalidRequest(f"parameters.{name}", f"{value.number_value:g}", f"{least:g} to {most:g}")
    steps = _work_factors(request, description)["num_inference_steps"]
    strength = request.parameters.fields.get("strength")
    if strength is not None and strength.HasField("number_value") and 1 < steps < 1 / strength.number_value - 1e-6:
        accepted = f"{1 / steps:g} to 1, so that one of {steps:g} steps is left"
        raise InvalidRequest("parameters.strength", f"{strength.number_value:g}", accepted)


def check_text_bytes(field: str, text: str) -> None:
    """Raise InvalidRequest for a text that is too long."""
    size_bytes = len(text.encode())
    if size_bytes > PROMPT_BYTES_MAX:
        raise InvalidRequest(field, f"{size_bytes} bytes", f"at most {PROMPT_BYTES_MAX} bytes of UTF-8")
