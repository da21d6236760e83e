"""Guidance on and off, as all roles of a job see it.

diffusers' modular blocks know guidance by their guider, and only a scale of exactly 1 switches it off there; some have
no way to do without the unconditional branch that nothing will use. Four rules make up for it, for all families:

* A scale below the one that means "off" becomes that one, as in the classic pipelines. So does the scale of a disabled
  guider, because some blocks enable their guider again.
* While any guider of a job is on, the encoder sees all of them on, because it asks only one.
* An encoder that isn't told about guidance decides by the negative prompt alone: with guidance on it gets an empty one
  where none is given, with guidance off none.
* With guidance off, what later blocks require of the unconditional branch is filled with the prompt's: nothing reads
  it. Encoders whose blocks fail without the branch make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from triptych.model.guidance import off_scale
from triptych.stages.device import undisturbed
from triptych.stages.handoff import walk
from triptych.stages.library import BaseGuidance, ModularPipelineBlocks

NEGATIVE = "negative_"
"""Begins the names of the unconditional branch's values; the prompt's have the rest of the name."""

TAKES_SCALE = "guidance_embeds"
"""In the configs of denoisers of pipelines with an input `guidance_scale`: whether this one has a use for it."""

TAKES_GUIDERS_SCALE = "time_cond_proj_dim"
"""Set in the configs of denoisers that take the guider's scale, on or off, as an input of their own."""


def denoiser_config(pipeline: Any) -> Mapping[str, Any]:
    """Configuration of the model that runs once a step; empty where the pipeline has none of the usual names."""
    models = (getattr(pipeline, name, None) for name in ("transformer", "unet"))
    config: Mapping[str, Any] = getattr(next((model for model in models if model is not None), None), "config", {})
    return config


def scale_in_force(guider: Any) -> float | None:
    """The scale that the guider works with; None where it has none."""
    scale = getattr(guider, "guidance_scale", None)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        return None
    return float(scale) if guider._enabled else _off(guider)


def settled(guider: Any, pipeline: Any) -> Any:
    """The guider with the off scale where guidance is to be off. A scale that the model takes stays what it is."""
    scale = scale_in_force(guider)
    if scale is None or scale > _off(guider) or guider.guidance_scale == _off(guider):
        return guider
    takes_it = denoiser_config(pipeline).get(TAKES_GUIDERS_SCALE) is not None
    return guider if takes_it else _changed(guider, guidance_scale=_off(guider))


def is_on(guiders: Iterable[BaseGuidance]) -> bool:
    """Whether any of a job's guiders makes more than the prompt's prediction."""
    return any(guider.num_conditions > 1 for guider in guiders)


def switched_on(guider: BaseGuidance) -> BaseGuidance:
    """A guider that asks for the unconditional branch; for encoders, which read nothing else of it."""
    if guider.num_conditions > 1 or scale_in_force(guider) is None:
        return guider
    return _changed(guider, guidance_scale=_off(guider) + 1, enabled=True)


def with_negative_prompt(inputs: Mapping[str, object], defaults: Mapping[str, object], on: bool) -> dict[str, object]:
    """The inputs of an encoder that isn't told about guidance; `defaults` are those of all that it takes."""
    if on:
        takes_one = "negative_prompt" in defaults
        wanted = takes_one and inputs.get("negative_prompt", defaults["negative_prompt"]) is None
        return {**inputs, "negative_prompt": ""} if wanted else dict(inputs)
    return {name: None if name.startswith(f"{NEGATIVE}prompt") else value for name, value in inputs.items()}


def required_negatives(blocks: ModularPipelineBlocks) -> list[str]:
    """Values of the unconditional branch without which a block, at any depth, doesn't run."""
    names = (parameter.name for block in walk(blocks) for parameter in block.inputs if parameter.required)
    return list(dict.fromkeys(name for name in names if name and name.startswith(NEGATIVE)))


def stand_ins(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The prompt's values for those of the unconditional branch that are missing."""
    missing = (name for name in names if values.get(name) is None)
    return {
        name: values[positive] for name in missing if values.get(positive := name.removeprefix(NEGATIVE)) is not None
    }


def _off(guider: Any) -> float:
    return off_scale(getattr(guider, "use_original_formulation", False))


def _changed(guider: BaseGuidance, **options: object) -> BaseGuidance:
    with undisturbed():
        return guider.new(**options)
