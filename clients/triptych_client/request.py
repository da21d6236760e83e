"""Typed keyword arguments to a `GenerationRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from triptych.errors import InvalidRequest
from triptych.limits import REQUEST_BYTES_MAX
from triptych.v1 import job_pb2
from triptych_client import media_files
from triptych_client.media_files import Media
from triptych_client.trees import tree

PRIORITIES = ("high", "normal", "low")
"""Names of priorities, first come first."""

Adapters = Mapping[str, float | Mapping[str, float]]
"""Weights by the adapter's name; for one that touches several components, perhaps a weight for each of them."""

Value = TypeVar("Value", bound=Message)


class GenerationFields(TypedDict, total=False):
    """Everything but the prompt. A field that is left out, or None, takes the loaded pipeline's default."""

    negative_prompt: str | None
    """Text to steer away from."""
    height: int | None
    """Height in pixels."""
    width: int | None
    """Width in pixels."""
    num_frames: int | None
    """Frames of a video."""
    num_inference_steps: int | None
    """Denoising steps."""
    guidance_scale: float | None
    """Guidance scale."""
    seed: int | None
    """Seed of the job's generator; drawn where none is given."""
    num_outputs: int | None
    """Results to make in one batch."""
    parameters: Mapping[str, Any] | None
    """Whatever else the pipeline accepts, as JSON values; see `describe_model`."""
    media: Media | None
    """Images, videos and sounds."""
    inputs: Mapping[str, Any] | None
    """Inputs by name as Python values, with pictures, arrays, tensors and paths at any depth; see `trees`."""
    seeds: Sequence[int] | None
    """One seed for each result, in place of `seed`."""
    deadline: datetime | timedelta | None
    """When to give up: a moment (with its time zone), or a time from now."""
    output_format: str | None
    """One of the formats that `describe_model` lists, for example `mp4` or `png`."""
    codec: str | None
    """Codec of a video file."""
    quality: int | None
    """1 to 100, for formats that lose something."""
    audio_format: str | None
    """Sound as a file of its own, in this format."""
    also_formats: Sequence[str] | None
    """The same result once more, in each of these formats."""
    thumbnail: str | None
    """A small picture beside each result: `jpeg` or `webp`."""
    metadata: str | None
    """What files say of how they were made: `settings` (no text), or `prompt` (with the prompts)."""
    frames_per_second: float | None
    """Speed of an encoded video."""
    preview_every_steps: int | None
    """Ask for a preview picture every so many steps."""
    transformer_rank: int | None
    """Only this transformer may denoise."""
    decoder_rank: int | None
    """Only this decoder may decode."""
    adapters: Adapters | None
    """Adapters (LoRA) that change the model for this job, in the order in which they are added."""
    priority: str | None
    """`high`, `normal` or `low`: which of the jobs that wait are begun first."""


OUTPUT_FIELDS = ("codec", "quality", "audio_format", "also_formats", "thumbnail", "metadata")
"""Fields of the request's `output`."""
METADATA = ("settings", "prompt")
MOMENT_ACCEPTED = "a time in the future, before the year 10000"


def build_request(prompt: str = "", **fields: Any) -> job_pb2.GenerationRequest:
    """Build a request from the prompt and `GenerationFields`.

    Raises InvalidRequest for a name that isn't a field, a value that the field can't hold, or a media file that can't
    be read. Whether the loaded pipeline accepts the values is for the controller to say.
    """
    request = job_pb2.GenerationRequest()
    _set(request, "prompt", prompt)
    for name, value in fields.items():
        if name not in GenerationFields.__annotations__:
            raise InvalidRequest(name, value, "one of " + ", ".join(GenerationFields.__annotations__))
        if value is None:
            continue
        if name == "parameters":
            _set_parameters(request, value)
        elif name == "media":
            request.media.extend(media_files.messages(value))
        elif name == "inputs":
            for input_name, one in value.items():
                request.inputs[input_name].CopyFrom(tree(one, f"inputs.{input_name}"))
        elif name == "seeds":
            _add_seeds(request, value)
        elif name == "adapters":
            _add_adapters(request, value)
        elif name == "deadline":
            request.deadline_time.FromDatetime(_moment(value))
        elif name == "priority":
            request.priority = _priority(value)
        elif name in OUTPUT_FIELDS:
            _set_output(request.output, name, value)
        else:
            _set(request, name, value)
    if request.ByteSize() > REQUEST_BYTES_MAX:
        raise InvalidRequest("request", f"{request.ByteSize()} bytes", f"at most {REQUEST_BYTES_MAX} bytes, with media")
    return request


def _set_output(options: job_pb2.OutputOptions, name: str, value: Any) -> None:
    if name == "metadata":
        if value not in METADATA:
            raise InvalidRequest("metadata", value, ", ".join(METADATA))
        options.metadata = job_pb2.OutputMetadata.Value(f"OUTPUT_METADATA_{value.upper()}")
    elif name == "also_formats":
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise InvalidRequest(name, value, "a list of formats")
        options.also_formats.extend(value)
    else:
        _set(options, name, value)


def _set(request: job_pb2.GenerationRequest | job_pb2.OutputOptions, name: str, value: Any) -> None:
    kind = _KIND_BY_TYPE[request.DESCRIPTOR.fields_by_name[name].type]
    if isinstance(value, bool):
        raise InvalidRequest(name, value, kind)
    try:
        setattr(request, name, value)
    except (TypeError, ValueError) as error:  # wrong type; out of range, or text with lone surrogates
        raise InvalidRequest(name, value, kind) from error


_KIND_BY_TYPE = {
    1: "a number",
    3: "a whole number of 64 bits",
    5: "a whole number of 32 bits",
    9: "text in Unicode",
    13: "a whole number of 32 bits, not negative",
}
"""Words for the types of protobuf's descriptors (double, int64, int32, string, uint32)."""


def _set_parameters(request: job_pb2.GenerationRequest, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        try:
            request.parameters.update({name: value})
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"parameters.{name}", value, "a JSON value") from error


def _add_seeds(request: job_pb2.GenerationRequest, seeds: Sequence[int]) -> None:
    for number, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise InvalidRequest(f"seeds[{number}]", seed, "a whole number of 64 bits")
        request.seeds.append(seed)


def _add_adapters(request: job_pb2.GenerationRequest, adapters: Adapters) -> None:
    for name, weight in adapters.items():
        try:
            if isinstance(weight, Mapping):
                request.adapters.add(name=name, component_weights=weight)
            else:
                request.adapters.add(name=name, weight=weight)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"adapters.{name}", weight, "a number, or numbers by component") from error


def _priority(name: Any) -> job_pb2.Priority.ValueType:
    if name not in PRIORITIES:
        raise InvalidRequest("priority", name, ", ".join(PRIORITIES))
    return job_pb2.Priority.Value(f"PRIORITY_{name.upper()}")


def _moment(deadline: datetime | timedelta) -> datetime:
    if isinstance(deadline, datetime) and deadline.tzinfo is None:
        raise InvalidRequest("deadline", deadline.isoformat(), "a moment with its time zone")
    try:
        return datetime.now(UTC) + deadline if isinstance(deadline, timedelta) else deadline.astimezone(UTC)
    except OverflowError as error:
        told = f"{deadline.total_seconds():g} s" if isinstance(deadline, timedelta) else deadline.isoformat()
        raise InvalidRequest("deadline", told, MOMENT_ACCEPTED) from error
