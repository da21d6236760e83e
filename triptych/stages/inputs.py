"""From a `GenerationRequest` to the values that the encoder's blocks take."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triptych.decoding.headers import File
from triptych.decoding.pool import files_of
from triptych.privacy import texts_in
from triptych.requests import OUTPUT_COUNT_INPUT, field_values, parameter_values, validate
from triptych.v1 import job_pb2, model_pb2

if TYPE_CHECKING:
    from triptych.decoding.decode import Decoded

Decode = Callable[[Sequence[File]], "Sequence[Decoded]"]
"""Makes pictures, or lists of frames, of files; raises InvalidRequest."""
RESERVED_PREFIX = "triptych."
"""Names of what crosses between roles and is no value of a pipeline; see `handoff`, which needs torch."""
SETTINGS = RESERVED_PREFIX + "settings"
_DERIVED = ("frames_per_second", "guidance_scale")
"""Recommended values that are no inputs of their own: the first is the file's, the second usually the guider's."""


def request_inputs(
    request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, decode: Decode | None = None
) -> dict[str, object]:
    """The encoder's inputs: values by input name, and the job's settings under `handoff.SETTINGS`.

    Fields that aren't set take the default that the model's folder recommends, or else are left to the pipeline. A
    seed is drawn where none is given. Media are decoded by `decode`, in this process where it isn't given. Raises
    `InvalidRequest` as `validate` does, and for media that can't be decoded.
    """
    validate(request, description)
    kinds = {described.name: described for described in description.inputs}
    values: dict[str, Any] = json.loads(description.defaults_json or "{}")
    values.update(field_values(request))
    values.update(parameter_values(request, description))
    scale = values.get("guidance_scale")
    options = {name: value for name, value in values.items() if "." in name}
    plain = {name: value for name, value in values.items() if name in kinds and name not in options}
    if "prompt" in kinds:
        plain.setdefault("prompt", "")
    overrides: dict[str, dict[str, object]] = {}
    if scale is not None and "guidance_scale" not in kinds:
        overrides.setdefault(first_guider(description), {})["guidance_scale"] = scale
    for name, value in options.items():
        component, _, option = name.partition(".")
        overrides.setdefault(component, {})[option] = value
    if request.num_outputs > 1:
        name = next(name for name in kinds if OUTPUT_COUNT_INPUT.fullmatch(name))
        plain[name] = request.num_outputs
    plain.update(_media(request, description, decode))
    settings = {
        "seed": request.seed if request.HasField("seed") else secrets.randbits(63),
        "preview_every_steps": request.preview_every_steps,
        "overrides": overrides,
    }
    return {**plain, SETTINGS: settings}


def texts_of(inputs: Mapping[str, object]) -> list[str]:
    """What the caller may have written among a stage's inputs: texts of the values, and of the guiders' options."""
    settings: Any = inputs.get(SETTINGS, {})
    values = {name: value for name, value in inputs.items() if not name.startswith(RESERVED_PREFIX)}
    options = settings.get("overrides", {}).values()
    return [text for mapping in (values, *options) for text in texts_in(mapping)]


def first_guider(description: model_pb2.ModelDescription) -> str:
    """Name of the guider that the request's `guidance_scale` sets; `guider` where the description lists no options."""
    for described in description.inputs:
        component, dot, _ = described.name.partition(".")
        if dot:
            return component
    return "guider"


def _media(
    request: job_pb2.GenerationRequest, description: model_pb2.ModelDescription, decode: Decode | None
) -> dict[str, object]:
    """Decoded images and videos by input name; several of one name form a list."""
    if not request.media:
        return {}
    if decode is None:
        from triptych.decoding.decode import decode_all

        decode = decode_all
    files = files_of(request, description)
    decoded: dict[str, list[Any]] = {}
    for file, value in zip(files, decode(files), strict=True):
        decoded.setdefault(file.name, []).append(value)
    return {name: items[0] if len(items) == 1 else items for name, items in decoded.items()}
