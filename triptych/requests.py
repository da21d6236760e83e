"""Whether a loaded pipeline can run a request: pure checks against its `ModelDescription`, no torch.

Used by the controller before a job is accepted and by encoders before it runs. Each refusal is an `InvalidRequest`
that names the field, its value and what is accepted.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf import struct_pb2, timestamp_pb2

from triptych import costs
from triptych.errors import InvalidRequest
from triptych.ids import RANK_MAX
from triptych.v1 import job_pb2, model_pb2

SIDE_PIXELS_MAX = 8192
"""Largest height or width: over what any known model was trained for; beyond it a typo is likelier than a wish."""

FRAMES_MAX = 4096
"""Most frames of a video: over four minutes at 16 a second, more than any known model makes in one go."""

STEPS_MAX = 1000
"""Most denoising steps: the number of training timesteps of every known scheduler."""

OUTPUTS_MAX = 16
"""Most results of one job. They share a batch in memory; more jobs do the same with less."""

MEDIA_COUNT_MAX = 64
"""Most images and videos in one request."""

FRAMES_PER_SECOND_MAX = 240.0
"""Fastest encoded video; players don't go beyond."""

FRAMES_PER_SECOND_MIN = 0.1
"""Slowest: ten seconds a frame. PNG's and GIF's counters of a frame's time end at about a minute."""

SECONDS_MAX = 253_402_300_799
"""Last second that a Timestamp may name: the end of the year 9999."""


NAME_CHARS_MAX = 128
"""Longest name that names are compared with: no input's is half as long, and the comparison takes time."""

OUTPUT_FORMATS = ("mp4", "gif", "png", "npy")
"""Formats of results. The empty string takes the pipeline's default."""

MOVING_FORMATS = ("mp4", "gif")
"""Formats that need frames."""

OUTPUT_COUNT_INPUT = re.compile(r"num_\w+_per_prompt")
"""Name of the input that `num_outputs` sets, for example `num_videos_per_prompt`."""

_FIELD_INPUTS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
)
"""Fields of a request that set the input of the same name."""

_MEDIA_KINDS = (model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)

Inputs = dict[str, model_pb2.InputDescription]


def validate(
    request: job_pb2.GenerationRequest,
    description: model_pb2.ModelDescription,
    work_max: float = 0.0,
    result_bytes_max: float = 0.0,
) -> None:
    """Raises `InvalidRequest` for the first field that the described pipeline can't take; changes nothing.

    `work_max` bounds outputs x frames x pixels x steps, `result_bytes_max` what the decoder makes, as float32; 0 for
    no limit.
    """
    inputs = {described.name: described for described in description.inputs}
    _check_texts(request, inputs)
    _check_fields_exist(request, description, inputs)
    for name in ("height", "width"):
        if request.HasField(name):
            _check_size(name, getattr(request, name), description.size_multiple)
    if request.HasField("num_frames"):
        _check_frames(request.num_frames, description.frame_multiple)
    steps_max = description.num_inference_steps_max or STEPS_MAX
    if request.HasField("num_inference_steps") and not 1 <= request.num_inference_steps <= steps_max:
        whose = " (this model's scheduler can do no more)" if steps_max < STEPS_MAX else ""
        accepted = f"a whole number, 1 to {steps_max}{whose}"
        raise InvalidRequest("num_inference_steps", request.num_inference_steps, accepted)
    if request.HasField("guidance_scale") and not math.isfinite(request.guidance_scale):
        raise InvalidRequest("guidance_scale", request.guidance_scale, "a finite number")
    _check_outputs(request, description, inputs)
    _check_media(request, inputs)
    _check_required(request, inputs)
    costs.check_parameters_size(request)
    parameter_values(request, description)
    costs.check_ranges(request, description)
    _check_delivery(request)
    if work_max:
        costs.check_work(request, description, work_max)
    if result_bytes_max:
        costs.check_result(request, description, result_bytes_max)


def field_values(request: job_pb2.GenerationRequest) -> dict[str, Any]:
    """The request's own fields that are set, by the name of the input."""
    values: dict[str, Any] = {"prompt": request.prompt} if request.prompt else {}
    values.update((name, getattr(request, name)) for name in _FIELD_INPUTS[1:] if request.HasField(name))  # type: ignore[arg-type]
    return values


def parameter_values(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription) -> dict[str, Any]:
    """`parameters` as plain values of the kinds that the inputs declare.

    A Struct's numbers are doubles: whole ones become int unless the input's type says float. Raises `InvalidRequest`
    for names that don't exist and values of another kind.
    """
    inputs = {described.name: described for described in description.inputs}
    values = {}
    for name, struct_value in request.parameters.fields.items():
        value = _plain(struct_value)
        described = inputs.get(name)
        if described is None:
            shown = _whole(value, keep_floats=False)  # a Struct has doubles only; show 1 where 1 was given
            raise InvalidRequest(f"parameters.{name}", shown, _known(name, _settable(inputs)))
        if name in _FIELD_INPUTS or OUTPUT_COUNT_INPUT.fullmatch(name):
            field = name if name in _FIELD_INPUTS else "num_outputs"
            shown = _whole(value, keep_floats=False)
            raise InvalidRequest(f"parameters.{name}", shown, f"nothing here; set the request's own field {field}")
        values[name] = _convert(described, value)
    return values


def _check_texts(request: job_pb2.GenerationRequest, inputs: Inputs) -> None:
    for name in ("prompt", "negative_prompt"):
        costs.check_text_bytes(name, getattr(request, name))
    if "prompt" not in inputs:
        if request.prompt:
            raise InvalidRequest("prompt", "text", "nothing; this pipeline takes no prompt")
    elif not request.prompt.strip() and (inputs["prompt"].required or not request.media):
        raise InvalidRequest("prompt", request.prompt, "text that is not empty")


def _check_fields_exist(
    request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, inputs: Inputs
) -> None:
    """A field that is set must set something."""
    for name in _FIELD_INPUTS[1:]:
        has_guider = name == "guidance_scale" and description.HasField("guidance_scale")
        if request.HasField(name) and name not in inputs and not has_guider:  # type: ignore[arg-type]
            raise InvalidRequest(name, getattr(request, name), "nothing; this pipeline has no such input")


def _check_size(name: str, value: int, multiple: int) -> None:
    step = max(multiple, 1)
    if not 1 <= value <= SIDE_PIXELS_MAX or value % step:
        accepted = f"{step} to {SIDE_PIXELS_MAX} pixels" + (f" in multiples of {step}" if step > 1 else "")
        raise InvalidRequest(name, value, accepted)


def _check_frames(value: int, multiple: int) -> None:
    step = max(multiple, 1)
    if not 1 <= value <= FRAMES_MAX or (value - 1) % step:
        rule = f", one more than a multiple of {step}" if step > 1 else ""
        raise InvalidRequest("num_frames", value, f"1 to {FRAMES_MAX}{rule}")


def _check_outputs(request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, inputs: Inputs) -> None:
    if not 0 <= request.num_outputs <= OUTPUTS_MAX:
        raise InvalidRequest("num_outputs", request.num_outputs, f"1 to {OUTPUTS_MAX}")
    if request.num_outputs > 1 and not any(OUTPUT_COUNT_INPUT.fullmatch(name) for name in inputs):
        raise InvalidRequest("num_outputs", request.num_outputs, "1; this pipeline makes one result a job")
    if request.output_format and request.output_format not in OUTPUT_FORMATS:
        raise InvalidRequest("output_format", request.output_format, ", ".join(OUTPUT_FORMATS))
    if request.output_format in MOVING_FORMATS and "videos" not in description.outputs:
        still = [name for name in OUTPUT_FORMATS if name not in MOVING_FORMATS]
        raise InvalidRequest(
            "output_format", request.output_format, f"{', '.join(still)}; this pipeline makes no video"
        )
    fps = request.frames_per_second
    if fps and not FRAMES_PER_SECOND_MIN <= fps <= FRAMES_PER_SECOND_MAX:  # refuses NaN, too
        accepted = f"{FRAMES_PER_SECOND_MIN:g} to {FRAMES_PER_SECOND_MAX:g}, or 0 for the model's own"
        raise InvalidRequest("frames_per_second", fps, accepted)


def _check_media(request: job_pb2.GenerationRequest, inputs: Inputs) -> None:
    if len(request.media) > MEDIA_COUNT_MAX:
        raise InvalidRequest("media", f"{len(request.media)} files", f"at most {MEDIA_COUNT_MAX}")
    takers = [name for name, described in inputs.items() if described.kind in _MEDIA_KINDS]
    for media in request.media:
        if media.name not in takers:
            raise InvalidRequest("media.name", media.name, _known(media.name, takers))
        if not media.data:
            raise InvalidRequest(f"media.{media.name}", media.data, "the bytes of a picture or video file")


def _check_required(request: job_pb2.GenerationRequest, inputs: Inputs) -> None:
    given = {media.name for media in request.media}
    for name, described in inputs.items():
        if not described.required or name == "prompt":
            continue
        if described.kind in _MEDIA_KINDS and name not in given:
            raise InvalidRequest(f"media.{name}", None, "a picture or video; this pipeline needs one")
        if described.kind == model_pb2.INPUT_KIND_TEXT and name not in request.parameters.fields:
            raise InvalidRequest(f"parameters.{name}", None, "text; this pipeline needs it")


def _check_delivery(request: job_pb2.GenerationRequest) -> None:
    if request.priority not in job_pb2.Priority.values():
        raise InvalidRequest("priority", request.priority, ", ".join(job_pb2.Priority.keys()[1:]))
    for name in ("transformer_rank", "decoder_rank"):
        if not 0 <= getattr(request, name) <= RANK_MAX:
            raise InvalidRequest(name, getattr(request, name), f"0 (anyone) to {RANK_MAX}")
    if request.HasField("deadline_time"):
        _check_deadline(request.deadline_time)


def _check_deadline(deadline: timestamp_pb2.Timestamp) -> None:
    """A Timestamp's fields hold more than the calendar does; what is outside can't be shown or computed with."""
    if not abs(deadline.seconds) <= SECONDS_MAX or not 0 <= deadline.nanos < 10**9:
        shown = f"{deadline.seconds} s and {deadline.nanos} ns"
        raise InvalidRequest("deadline_time", shown, "a time in the future, before the year 10000")
    if deadline.seconds + deadline.nanos * 1e-9 <= time.time():
        shown = datetime.fromtimestamp(max(deadline.seconds, 0), UTC).isoformat()
        raise InvalidRequest("deadline_time", shown, "a time in the future")


def _convert(described: model_pb2.InputDescription, value: Any) -> Any:
    field = f"parameters.{described.name}"
    kind = described.kind
    if kind == model_pb2.INPUT_KIND_INTERNAL:
        raise InvalidRequest(field, value, "nothing; this input is internal to the pipeline")
    if kind in _MEDIA_KINDS:
        raise InvalidRequest(field, value, "nothing here; pictures and videos go in media")
    if not _finite(value):
        raise InvalidRequest(field, value, "finite numbers")
    accepted = _ACCEPTED.get(kind)
    value = _whole(value, keep_floats="float" in described.type_hint)
    if accepted is None or value is None:
        return value
    types, sentence = accepted
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InvalidRequest(field, value, sentence)
    return value


_ACCEPTED: dict[int, tuple[tuple[type, ...], str]] = {
    model_pb2.INPUT_KIND_TEXT: ((str,), "text"),
    model_pb2.INPUT_KIND_INTEGER: ((int,), "a whole number"),
    model_pb2.INPUT_KIND_NUMBER: ((int, float), "a finite number"),
    model_pb2.INPUT_KIND_BOOLEAN: ((bool,), "true or false"),
    model_pb2.INPUT_KIND_LIST: ((list,), "a list"),
    model_pb2.INPUT_KIND_MAPPING: ((dict,), "a mapping"),
}


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


def _whole(value: Any, *, keep_floats: bool) -> Any:
    """Turns whole doubles into int, at any depth."""
    if isinstance(value, float) and not keep_floats and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item, keep_floats=keep_floats) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item, keep_floats=keep_floats) for key, item in value.items()}
    return value


def _settable(inputs: Inputs) -> list[str]:
    hidden = (model_pb2.INPUT_KIND_INTERNAL, *_MEDIA_KINDS)
    return [
        name
        for name, described in inputs.items()
        if described.kind not in hidden and name not in _FIELD_INPUTS and not OUTPUT_COUNT_INPUT.fullmatch(name)
    ]


def _known(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    close = difflib.get_close_matches(name[:NAME_CHARS_MAX], known, n=3)
    if close:
        return f"{' or '.join(close)} (close to it), of {len(known)} names that DescribeModel lists"
    return ", ".join(known) if known else "nothing; this pipeline takes none"
