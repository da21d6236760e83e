"""How a request's result is delivered, checked against what its model makes. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from triptych.errors import InvalidRequest
from triptych.media.formats import (
    DATA,
    FORMATS,
    MOVING,
    QUALITY_MAX,
    SOUND,
    SOUND_FORMATS,
    STILL,
    THUMBNAILS,
    default_format,
    formats_for,
    kind_of,
    kinds_of,
)
from triptych.model import trees
from triptych.model.fields import TEXTS, prompts_of
from triptych.v1 import job_pb2, model_pb2

_KINDS = {
    STILL: model_pb2.OUTPUT_KIND_IMAGE,
    MOVING: model_pb2.OUTPUT_KIND_VIDEO,
    SOUND: model_pb2.OUTPUT_KIND_SOUND,
    DATA: model_pb2.OUTPUT_KIND_DATA,
}


def describe_outputs(names: Sequence[str], rates_hz: dict[str, int]) -> list[model_pb2.OutputDescription]:
    """The outputs as a description has them; `rates_hz` are of those that are sound, where they are known."""
    return [
        model_pb2.OutputDescription(name=name, kind=_KINDS[kind_of(name)], sampling_rate_hz=rates_hz.get(name, 0))
        for name in names
    ]


def sampling_rate_hz(message: model_pb2.ModelDescription) -> int:
    """The rate of the model's sound; 0 where it has none, or tells it with the sound."""
    return next((one.sampling_rate_hz for one in message.result.outputs if one.sampling_rate_hz), 0)


def check(request: job_pb2.GenerationRequest, message: model_pb2.ModelDescription) -> None:
    """Raise InvalidRequest for a format that can't hold what the model makes, and for options that the format lacks."""
    kinds = kinds_of(message.outputs)
    accepted = formats_for(kinds)
    makes = f"this pipeline makes {' and '.join(kinds) or 'data'}"
    options = request.output
    _check_among("output_format", request.output_format, accepted, makes)
    for name in options.also_formats:
        if not name:
            raise InvalidRequest("output.also_formats", name, ", ".join(accepted))
        _check_among("output.also_formats", name, accepted, makes)
    _check_among("output.audio_format", options.audio_format, SOUND_FORMATS if SOUND in kinds else (), makes)
    has_pictures = MOVING in kinds or STILL in kinds
    _check_among("output.thumbnail", options.thumbnail, THUMBNAILS if has_pictures else (), makes)
    if options.metadata not in job_pb2.OutputMetadata.values():
        names = ", ".join(job_pb2.OutputMetadata.keys()[1:])
        raise InvalidRequest("output.metadata", options.metadata, names)
    _check_encoders(request, message)


def _check_encoders(request: job_pb2.GenerationRequest, message: model_pb2.ModelDescription) -> None:
    """Raise InvalidRequest for a codec or a quality that none of the result's formats has."""
    options = request.output
    chosen = request.output_format or default_format(kinds_of(message.outputs))
    names = [name for name in (chosen, *options.also_formats, options.audio_format) if name in FORMATS]
    codecs = list(dict.fromkeys(codec for name in names for codec in FORMATS[name].codecs))
    if options.codec and options.codec not in codecs:
        known = f"{', '.join(codecs) or 'nothing'}, in {' and '.join(names)}"
        raise InvalidRequest("output.codec", options.codec, known)
    if not 0 <= options.quality <= QUALITY_MAX:
        raise InvalidRequest("output.quality", options.quality, f"1 to {QUALITY_MAX}, or 0 for the format's default")
    if options.quality and names and not any(FORMATS[name].has_quality for name in names):
        lossy = [name for name in formats_for(kinds_of(message.outputs)) if FORMATS[name].has_quality]
        accepted = f"0; only {', '.join(lossy)} have a quality" if lossy else "0; no format here loses anything"
        raise InvalidRequest("output.quality", options.quality, accepted)


def _check_among(field: str, value: str, accepted: Sequence[str], makes: str) -> None:
    if value and value not in accepted:
        raise InvalidRequest(field, value, f"{', '.join(accepted) or 'nothing'}; {makes}")


def metadata_json(request: job_pb2.GenerationRequest, message: model_pb2.ModelDescription) -> str:
    """What the files of a request's result say of how they were made; empty where it doesn't ask for it.

    Texts are left out, because parameters may hold other prompts: only numbers and booleans of them are told.
    """
    wanted = request.output.metadata
    if not wanted:
        return ""
    given = trees.gather(request).values
    settings: dict[str, object] = {
        name: number for name, value in given.items() if (number := _plain(value)) is not None
    }
    if request.num_outputs > 1:
        settings["num_outputs"] = request.num_outputs
    prompts = prompts_of(given)
    digests = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
    document: dict[str, object] = {
        "software": "triptych",
        "model": message.model,
        "revision": message.revision,
        "model_digest": message.config_digest,
        "seed": request.seeds[0] if request.seeds else request.seed,
        "prompt_sha256": digests[0] if len(digests) == 1 else digests,
        "settings": settings,
    }
    if request.seeds:
        document["seeds"] = list(request.seeds)
    if wanted == job_pb2.OUTPUT_METADATA_PROMPT:
        document.update({name: given[name] for name in TEXTS if name in given})
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> float | bool | None:
    """A number or a boolean; None for any other value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, bool | int | float) else None
