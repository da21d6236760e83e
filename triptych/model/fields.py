"""A request's own fields, besides `parameters` and `media`: their values, and whether a model can take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from triptych.errors import InvalidRequest
from triptych.ids import RANK_MAX
from triptych.media.formats import FORMATS
from triptych.model import rates
from triptych.model.costs import check_text_bytes
from triptych.model.description import Description
from triptych.v1 import job_pb2

SIDE_PIXELS_MAX = 8192
"""Largest height or width: over what any known model was trained for; beyond it a typo is likelier than a wish."""

FRAMES_MAX = 4096
"""Most frames of a video: over four minutes at 16 a second, more than any known model makes in one go."""

STEPS_MAX = 1000
"""Most denoising steps: the number of training timesteps of every known scheduler."""

OUTPUTS_MAX = 16
"""Most results of one job. They share a batch in memory; more jobs do the same with less."""

SECONDS_MAX = 253_402_300_799
"""Last second that a Timestamp may name: the end of the year 9999."""

LATENT = "latent"
"""The output type that asks for what the transformer leaves, undecoded."""

OUTPUT_TYPES = ("pil", "np", "pt", LATENT)
"""What a pipeline's `output_type` may be: pictures of PIL, numpy or torch, or latents. Not every pipeline has all."""

TEXTS = ("prompt", "negative_prompt")
NUMBERS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
INPUT_FIELDS = (*TEXTS, *NUMBERS)
"""Fields of a request that set the input of the same name."""


def values_of(request: job_pb2.GenerationRequest) -> dict[str, Any]:
    """The fields that set an input and are set themselves, by name."""
    found: dict[str, Any] = {"prompt": request.prompt} if request.prompt else {}
    found.update((name, getattr(request, name)) for name in INPUT_FIELDS[1:] if request.HasField(name))  # type: ignore[arg-type]
    return found


def check_texts(request: job_pb2.GenerationRequest, description: Description) -> None:
    """Raise InvalidRequest for a text that is too long, or a prompt that is missing or one too many."""
    for name in TEXTS:
        check_text_bytes(name, getattr(request, name))
    prompt = description.inputs.get("prompt")
    if prompt is None:
        if request.prompt:
            raise InvalidRequest("prompt", "text", "nothing; this pipeline takes no prompt")
    elif not request.prompt.strip() and (prompt.required or not request.media):
        raise InvalidRequest("prompt", request.prompt, "text that is not empty")


def check_values(request: job_pb2.GenerationRequest, description: Description) -> None:
    """Raise InvalidRequest for the first field that sets nothing, or whose value this model can't take."""
    given = values_of(request)
    for name, value in given.items():
        has_guider = name == "guidance_scale" and description.message.HasField("guidance_scale")
        if name != "prompt" and name not in description.inputs and not has_guider:
            raise InvalidRequest(name, value, "nothing; this pipeline has no such input")
    _check_sizes(given, description)
    steps_max = description.message.num_inference_steps_max or STEPS_MAX
    if not 1 <= given.get("num_inference_steps", 1) <= steps_max:
        whose = " (this model's scheduler can do no more)" if steps_max < STEPS_MAX else ""
        raise InvalidRequest(
            "num_inference_steps", request.num_inference_steps, f"a whole number, 1 to {steps_max}{whose}"
        )
    if not math.isfinite(request.guidance_scale):
        raise InvalidRequest("guidance_scale", request.guidance_scale, "a finite number")
    _check_outputs(request, description)


def _check_sizes(given: Mapping[str, Any], description: Description) -> None:
    step = max(description.message.size_multiple, 1)
    for name in given.keys() & {"height", "width"}:
        value = given[name]
        if not 1 <= value <= SIDE_PIXELS_MAX or value % step:
            accepted = f"{step} to {SIDE_PIXELS_MAX} pixels" + (f" in multiples of {step}" if step > 1 else "")
            raise InvalidRequest(name, value, accepted)
    step = max(description.message.frame_multiple, 1)
    frames = given.get("num_frames", 1)
    if not 1 <= frames <= FRAMES_MAX or (frames - 1) % step:
        rule = f", one more than a multiple of {step}" if step > 1 else ""
        raise InvalidRequest("num_frames", frames, f"1 to {FRAMES_MAX}{rule}")


def _check_outputs(request: job_pb2.GenerationRequest, description: Description) -> None:
    count = request.num_outputs
    output_format = request.output_format
    if not 0 <= count <= OUTPUTS_MAX:
        raise InvalidRequest("num_outputs", count, f"1 to {OUTPUTS_MAX}")
    if count > 1 and description.output_count_input is None:
        raise InvalidRequest("num_outputs", count, "1; this pipeline makes one result a job")
    if output_format and output_format not in FORMATS:
        raise InvalidRequest("output_format", output_format, ", ".join(FORMATS))
    if output_format and FORMATS[output_format].is_for_videos and rates.VIDEOS not in description.message.outputs:
        still = [name for name, one in FORMATS.items() if not one.is_for_videos]
        raise InvalidRequest("output_format", output_format, f"{', '.join(still)}; this pipeline makes no video")


def check_output_type(output_type: object, output_format: str) -> None:
    """Raise InvalidRequest for a parameter `output_type` that no pipeline knows, and for latents as a picture."""
    if not isinstance(output_type, str):
        return
    if output_type not in OUTPUT_TYPES:
        raise InvalidRequest("parameters.output_type", output_type, ", ".join(OUTPUT_TYPES))
    if output_type == LATENT and output_format not in ("", "npy"):
        raise InvalidRequest("output_format", output_format, "npy, or nothing: latents are no picture")


def check_delivery(request: job_pb2.GenerationRequest) -> None:
    """Raise InvalidRequest for a priority or a worker's rank that doesn't exist."""
    if request.priority not in job_pb2.Priority.values():
        raise InvalidRequest("priority", request.priority, ", ".join(job_pb2.Priority.keys()[1:]))
    for name in ("transformer_rank", "decoder_rank"):
        if not 0 <= getattr(request, name) <= RANK_MAX:
            raise InvalidRequest(name, getattr(request, name), f"0 (anyone) to {RANK_MAX}")


def check_deadline(request: job_pb2.GenerationRequest, now_s: float) -> None:
    """Raise InvalidRequest for a deadline that has passed, by the Unix time `now_s`, or that no calendar holds.

    Only the controller (or `--fused`) asks: it alone decides when a deadline has passed.
    """
    if not request.HasField("deadline_time"):
        return
    deadline = request.deadline_time
    if not abs(deadline.seconds) <= SECONDS_MAX or not 0 <= deadline.nanos < 10**9:
        shown = f"{deadline.seconds} s and {deadline.nanos} ns"
        raise InvalidRequest("deadline_time", shown, "a time in the future, before the year 10000")
    if deadline.seconds + deadline.nanos * 1e-9 <= now_s:
        shown = datetime.fromtimestamp(max(deadline.seconds, 0), UTC).isoformat()
        raise InvalidRequest("deadline_time", shown, "a time in the future")
