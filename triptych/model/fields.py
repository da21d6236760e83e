"""A request's own fields, besides `parameters` and `media`: their values, and whether a model can take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from triptych.errors import InvalidRequest
from triptych.ids import RANK_MAX
from triptych.media.formats import EXACT
from triptych.model.accepting import shown
from triptych.model.costs import check_text_bytes
from triptych.model.description import Description, Given
from triptych.v1 import job_pb2

SIDE_PIXELS_MAX = 8192
"""Largest height or width: over what any known model was trained for; beyond it a typo is likelier than a wish."""

FRAMES_MAX = 4096
"""Most frames of a video: over four minutes at 16 a second, more than any known model makes in one go."""

STEPS_MAX = 1000
"""Most denoising steps: the number of training timesteps of every known scheduler."""

OUTPUTS_MAX = 16
"""Most results of one job. They share a batch in memory, or wait for each other; more jobs do the same with less."""

SECONDS_MAX = 253_402_300_799
"""Last second that a Timestamp may name: the end of the year 9999."""

LATENT = "latent"
"""The output type that asks for what the transformer leaves, undecoded."""

OUTPUT_TYPES = ("pil", "np", "pt", LATENT)
"""What a pipeline's `output_type` may be: pictures of PIL, numpy or torch, or latents. Not every pipeline has all."""

GENERATOR = "generator"
"""diffusers' name of the input that takes a generator, or a list with one for each result."""

EMBEDDED_PROMPT = "prompt_embeds"
"""Begins diffusers' names of inputs that stand for an encoded prompt."""

TEXTS = ("prompt", "negative_prompt")
NUMBERS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
INPUT_FIELDS = (*TEXTS, *NUMBERS)
"""Fields of a request that set the input of the same name."""


def values_of(request: job_pb2.GenerationRequest) -> dict[str, Any]:
    """The fields that set an input and are set themselves, by name."""
    found: dict[str, Any] = {"prompt": request.prompt} if request.prompt else {}
    found.update((name, getattr(request, name)) for name in INPUT_FIELDS[1:] if request.HasField(name))  # type: ignore[arg-type]
    return found


def check_texts(request: job_pb2.GenerationRequest) -> None:
    """Raise InvalidRequest for a text that is too long."""
    for name in TEXTS:
        check_text_bytes(name, getattr(request, name))


def check_prompt(given: Mapping[str, Any], place: str, description: Description, *, has_files: bool) -> None:
    """Raise InvalidRequest for a prompt that is missing or one too many; `given` are all values by input."""
    prompt = description.inputs.get("prompt")
    if prompt is None:
        if given.get("prompt"):
            raise InvalidRequest(place, "text", "nothing; this pipeline takes no prompt")
        return
    prompts = prompts_of(given)
    if given.get("prompt") == [] or len(prompts) > OUTPUTS_MAX:
        raise InvalidRequest(place, f"{len(prompts)} texts", f"1 to {OUTPUTS_MAX}")
    is_encoded = any(name.startswith(EMBEDDED_PROMPT) and value is not None for name, value in given.items())
    if (prompt.required or not has_files) and not is_encoded:
        for text in prompts or [""]:
            if not text.strip():
                raise InvalidRequest(place, text, "text that is not empty")


def prompts_of(given: Mapping[str, Any]) -> list[str]:
    """The prompts: none, one, or those of a batch."""
    prompt = given.get("prompt")
    return prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]


def check_values(given: Given, description: Description) -> None:
    """Raise InvalidRequest for the first field that sets nothing, or whose value this model can't take."""
    values = {name: given.values[name] for name in INPUT_FIELDS if given.values.get(name) is not None}
    for name, value in values.items():
        has_guider = name == "guidance_scale" and description.message.HasField("guidance_scale")
        if name != "prompt" and name not in description.inputs and not has_guider:
            raise InvalidRequest(given.places[name], value, "nothing; this pipeline has no such input")
    for name in values.keys() & set(NUMBERS):
        types = (int, float) if name == "guidance_scale" else (int,)
        if not isinstance(values[name], types) or isinstance(values[name], bool) or not math.isfinite(values[name]):
            accepted = "a finite number" if name == "guidance_scale" else "a whole number"
            raise InvalidRequest(given.places[name], shown(values[name]), accepted)
    _check_sizes(values, given.places, description)
    steps_max = description.message.num_inference_steps_max or STEPS_MAX
    steps = values.get("num_inference_steps", 1)
    if not 1 <= steps <= steps_max:
        whose = " (this model's scheduler can do no more)" if steps_max < STEPS_MAX else ""
        accepted = f"a whole number, 1 to {steps_max}{whose}"
        raise InvalidRequest(given.places["num_inference_steps"], steps, accepted)


def _check_sizes(values: Mapping[str, Any], places: Mapping[str, str], description: Description) -> None:
    step = max(description.message.size_multiple, 1)
    for name in values.keys() & {"height", "width"}:
        value = values[name]
        if not 1 <= value <= SIDE_PIXELS_MAX or value % step:
            accepted = f"{step} to {SIDE_PIXELS_MAX} pixels" + (f" in multiples of {step}" if step > 1 else "")
            raise InvalidRequest(places[name], value, accepted)
    step = max(description.message.frame_multiple, 1)
    frames = values.get("num_frames", 1)
    if not 1 <= frames <= FRAMES_MAX or (frames - 1) % step:
        rule = f", one more than a multiple of {step}" if step > 1 else ""
        raise InvalidRequest(places["num_frames"], frames, f"1 to {FRAMES_MAX}{rule}")


def check_seeds(request: job_pb2.GenerationRequest, result_count: int, description: Description) -> None:
    """Raise InvalidRequest for other than one seed for each result, and for `seed` beside them."""
    if not request.seeds:
        return
    if request.HasField("seed"):
        raise InvalidRequest("seed", request.seed, "nothing beside seeds")
    if len(request.seeds) != result_count:
        accepted = f"{result_count}: one for each result (prompts x num_outputs)"
        raise InvalidRequest("seeds", f"{len(request.seeds)} seeds", accepted)
    if description.inputs and GENERATOR not in description.inputs:
        raise InvalidRequest("seeds", f"{len(request.seeds)} seeds", "nothing; this pipeline takes no generators")


def check_outputs(request: job_pb2.GenerationRequest, prompt_count: int, description: Description) -> None:
    """Raise InvalidRequest for a number of results that no job may have."""
    count = request.num_outputs
    if not 0 <= count <= OUTPUTS_MAX:
        raise InvalidRequest("num_outputs", count, f"1 to {OUTPUTS_MAX}")
    if max(count, 1) * prompt_count > OUTPUTS_MAX:
        each = f"{count} for each of {prompt_count} prompts"
        raise InvalidRequest("num_outputs", each, f"at most {OUTPUTS_MAX} results in all")
    if count > 1 and prompt_count > 1 and description.output_count_input is None:
        raise InvalidRequest("num_outputs", count, "1 beside several prompts; this pipeline makes one result of each")


def check_output_type(output_type: object, output_format: str) -> None:
    """Raise InvalidRequest for a parameter `output_type` that no pipeline knows, and for latents as a picture."""
    if not isinstance(output_type, str):
        return
    if output_type not in OUTPUT_TYPES:
        raise InvalidRequest("parameters.output_type", output_type, ", ".join(OUTPUT_TYPES))
    if output_type == LATENT and output_format not in ("", *EXACT):
        raise InvalidRequest("output_format", output_format, f"{', '.join(EXACT)}, or nothing: latents are no picture")


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
