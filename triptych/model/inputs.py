"""From a `GenerationRequest` to what the encoder's blocks take: `resolve` is the only way, for all who need it.

The controller resolves a request before it accepts the job, the encoder and `--fused` before they run it. Pure: no
I/O, no clock, no random numbers, no torch; `Inputs.for_encoder` draws a seed and decodes media.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import File
from triptych.media.formats import RUNS
from triptych.model import accepting, adapters, costs, fields, guidance, outputs, parameters, rates, trees
from triptych.model.description import Description
from triptych.security.privacy import texts_in
from triptych.v1 import job_pb2, model_pb2

if TYPE_CHECKING:
    from triptych.media.decoding.values import Decoded

Decode = Callable[[Sequence[File]], "Sequence[Decoded]"]
"""Makes pictures, or lists of frames, of files; raises InvalidRequest."""
RESERVED_PREFIX = "triptych."
"""Begins the names of what crosses between roles and is no value of a pipeline; see `stages/handoff.py`."""
SETTINGS = RESERVED_PREFIX + "settings"
RUN_SEEDS = "run_seeds"
"""Among the settings: the seeds of results that are made one after another (`stages/several.py`)."""
_SEED_LIMIT = 2**63
_DEFAULT_FIELDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(costs.WORK_INPUTS, ((int,), "a whole number")),
    **dict.fromkeys(("guidance_scale", rates.FIELD), ((int, float), "a finite number")),
    **dict.fromkeys(fields.TEXTS, ((str,), "text")),
}
"""Defaults that are fields of a request; all others are its parameters."""


@dataclass(frozen=True)
class Inputs:
    """A request that its model can run."""

    values: Mapping[str, object]
    """What the blocks take, by the input's name, with files as `File` and tensors as `Tensor` of `tensor_files`, at any
    depth. What it leaves out is left to the pipeline."""
    files: tuple[File, ...]
    """The files among the values, to be decoded."""
    work: costs.Work
    seed: int | None
    seeds: tuple[int, ...]
    """One for each result, or none."""
    preview_every_steps: int
    guider_options: guidance.Options
    adapters: Sequence[adapters.Used]
    run_count: int = 1
    """Results that are made one after another."""

    def for_encoder(self, decode: Decode | None = None) -> dict[str, object]:
        """What the encoder's stage takes: `values` with their files decoded, and the job's settings under `SETTINGS`.

        Draws a seed where the request has none. Media are decoded by `decode`, in this process where it isn't given.
        Raises `InvalidRequest` for media that can't be decoded.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        settings: dict[str, object] = {
            "seed": seed,
            "preview_every_steps": self.preview_every_steps,
            "overrides": self.guider_options,
            **({adapters.SETTING: [list(one) for one in self.adapters]} if self.adapters else {}),
        }
        if self.run_count > 1:
            counted = self.seeds or [seed + number for number in range(self.run_count)]
            settings[RUN_SEEDS] = [one if one < _SEED_LIMIT else one - _SEED_LIMIT for one in counted]
        elif self.seeds:
            settings["seeds"] = list(self.seeds)
        return {**self._decoded(decode), SETTINGS: settings}

    def _decoded(self, decode: Decode | None) -> dict[str, object]:
        """The values with pictures, frames and sound in place of files."""
        if not self.files:
            return dict(self.values)
        if decode is None:
            from triptych.media.decoding.decode import decode_all

            decode = decode_all
        for file in self.files:
            if not file.data:  # a URL, whose bytes a controller would have put in
                raise InvalidRequest(f"{file.place}.url", "a URL", "a file: only a controller fetches URLs")
        decoded = iter(decode(self.files))  # in the order in which `replaced` comes by
        return {name: accepting.replaced(value, lambda _file: next(decoded)) for name, value in self.values.items()}


def resolve(request: job_pb2.GenerationRequest, message: model_pb2.ModelDescription) -> Inputs:
    """The request as the described model takes it: checked, with its parameters converted and the folder's defaults.

    Raises `InvalidRequest` for the first field that the model can't take. `fields.check_deadline`, `costs.check_work`
    and `costs.check_result` check what a fleet allows beyond that.
    """
    description = Description(message)
    fields.check_texts(request)
    costs.check_parameters_size(request.parameters)
    trees.check_size(request)
    given = trees.gather(request)
    fields.check_values(given, description)
    parameters.check_required(given, description)
    requested = parameters.parse(given, description)
    files = [file for value in requested.values() for file in accepting.files_in(value)]
    fields.check_prompt(requested, given.places.get("prompt", "prompt"), description, has_files=bool(files))
    prompt_count = max(1, len(fields.prompts_of(requested)))
    fields.check_outputs(request, prompt_count, description)
    results = prompt_count * max(1, request.num_outputs)
    fields.check_seeds(request, results, description)
    in_force = {**description.defaults, **requested}
    work = costs.work_of(results, in_force)
    guidance.check_guidance(requested, description)
    _check_workflow(in_force, description)
    outputs.check(request, message)
    fields.check_output_type(requested.get("output_type"), request.output_format)
    rates.check(request.frames_per_second, requested, given.places, description)
    costs.check_ranges(requested, given.places, description, work["num_inference_steps"])
    fields.check_delivery(request)
    requested.update(rates.input_values(request.frames_per_second, requested, description))
    rate = rates.told(request.frames_per_second, requested, description)
    values = parameters.sized(_values(request, requested, description), in_force, rate)
    return Inputs(
        values=values,
        files=tuple(file for value in values.values() for file in accepting.files_in(value)),
        work=work,
        seed=request.seeds[0] if request.seeds else request.seed if request.HasField("seed") else None,
        seeds=tuple(request.seeds),
        preview_every_steps=request.preview_every_steps,
        guider_options=guidance.overrides(description, requested),
        adapters=adapters.used(request, message),
        run_count=1 if description.output_count_input is not None else max(1, request.num_outputs),
    )


def texts_of(inputs: Mapping[str, object]) -> list[str]:
    """What the caller may have written among a stage's inputs: texts of the values, and of the guiders' options."""
    runs: Any = inputs.get(RUNS)
    if runs:
        return [text for run in runs for text in texts_of(run)]
    settings: Any = inputs.get(SETTINGS, {})
    values = {name: value for name, value in inputs.items() if not name.startswith(RESERVED_PREFIX)}
    options = settings.get("overrides", {}).values()
    return [text for mapping in (values, *options) for text in texts_in(mapping)]


def _check_workflow(in_force: Mapping[str, Any], description: Description) -> None:
    """Raise InvalidRequest for a job of a workflow that this fleet hasn't loaded."""
    given = {name for name, value in in_force.items() if value is not None and value is not False}
    given |= {"prompt"}
    matching = [one for one in description.message.workflows if given.issuperset(one.inputs)]
    most = max((len(one.inputs) for one in matching), default=0)
    meant = [one for one in matching if len(one.inputs) == most]
    if meant and not any(one.is_served for one in meant):
        served = ", ".join(dict.fromkeys(one.name for one in description.message.workflows if one.is_served))
        shown = f"a job of the workflow {meant[0].name}"
        raise InvalidRequest("request", shown, f"one of the workflows that this fleet has loaded: {served}")


def _values(
    request: job_pb2.GenerationRequest, requested: Mapping[str, Any], description: Description
) -> dict[str, object]:
    """What the blocks take of the request and the folder's defaults. Options of guiders have a dot in their name."""
    named = {**description.recommended, **requested}.items()
    values = {name: value for name, value in named if name in description.inputs and "." not in name}
    if "prompt" in description.inputs and not any(name.startswith(fields.EMBEDDED_PROMPT) for name in requested):
        values.setdefault("prompt", "")
    if request.num_outputs > 1 and description.output_count_input is not None:
        values[description.output_count_input] = request.num_outputs
    return values


def check_defaults(description: Description) -> None:
    """Raise `InvalidRequest` for the first recommended value that no job of the model could run with.

    A request that leaves a value out gets the default, so defaults are checked as a request with these values would be.
    """
    request = job_pb2.GenerationRequest()
    for name, value in description.recommended.items():
        if value is not None:  # else it counts as left out
            _set_default(request, name, value)
    fields.check_texts(request)
    costs.check_parameters_size(request.parameters)
    given = trees.gather(request)
    parsed = parameters.parse(given, description)
    fields.check_values(given, description)
    steps = costs.work_of(0, description.defaults)["num_inference_steps"]
    costs.check_ranges(parsed, given.places, description, steps)


def _set_default(request: job_pb2.GenerationRequest, name: str, value: Any) -> None:
    if name not in _DEFAULT_FIELDS:
        try:
            request.parameters.update({name: value})
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(f"parameters.{name}", value, "a JSON value of finite numbers") from error
        return
    types, accepted = _DEFAULT_FIELDS[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise InvalidRequest(name, value, accepted)
    try:
        setattr(request, name, value)
    except (ValueError, TypeError, OverflowError) as error:  # more than the field holds
        raise InvalidRequest(name, value, accepted) from error
