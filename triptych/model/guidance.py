"""What a request's `guidance_scale` means, without torch: which guiders it sets, and where it would mean nothing.

Guidance is off at a guider's off scale and under it, as in diffusers' classic pipelines; then only the prompt counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych.model.description import Description
from triptych.v1 import model_pb2

CLASS = "class"
"""Names the option that is a guider's class."""
OFF_SCALE = 1.0
"""`uncond + 1 x (cond - uncond)` is `cond`."""

Options = dict[str, dict[str, object]]
"""Options of guiders by component name."""


def off_scale(original_formulation: object) -> float:
    """The scale at which the guider's formula gives the prompt's prediction alone.

    With `use_original_formulation`, as in the paper, `cond + 0 x (cond - uncond)` is `cond`.
    """
    return 0.0 if original_formulation else OFF_SCALE


def check_guidance(requested: Mapping[str, Any], description: Description) -> None:
    """Raise InvalidRequest for a scale that would change nothing. One that means "off" is accepted by any model."""
    scale = requested.get("guidance_scale")
    if scale is None:
        return
    if description.message.without_guidance and scale > OFF_SCALE:
        accepted = f"at most {OFF_SCALE:g}, which means no guidance; this model was made without it"
        raise InvalidRequest("guidance_scale", scale, accepted)
    guiders = _guiders(description)
    if not guiders or "guidance_scale" in description.inputs:
        return
    name = f"{guiders[0]}.enabled"
    off = _off_scale_of(guiders[0], description, {})
    if requested.get(name) is False and scale > off:
        accepted = f"at most {off:g} beside parameters.{name} false, because no guidance has no scale"
        raise InvalidRequest("guidance_scale", scale, accepted)


def overrides(description: Description, requested: Mapping[str, Any]) -> Options:
    """Options of the job's guiders: a request's over those that the model's folder recommends.

    `guidance_scale` sets the first guider, and switches it on; a scale that means "off" sets all of them. An option
    that is given by its own name, `guider_2.guidance_scale`, takes precedence. A scale that is the model's own input
    (embedded guidance) is no guider's. A guider of another class takes none of the folder's options: they are its
    predecessor's. Schedulers' options are among them, by the same names.
    """
    found: Options = {}
    other = {name.removesuffix(f".{CLASS}") for name in requested if name.endswith(f".{CLASS}")}
    first = next(iter(_guiders(description)), "")
    for values in (description.recommended, requested):
        skipped = other if values is description.recommended else set()
        scale = values.get("guidance_scale")
        if scale is not None and "guidance_scale" not in description.inputs and first not in skipped:
            _set_scale(found, description, float(scale), values)
        for name, value in values.items():
            component, dot, option = name.partition(".")
            if dot and component not in skipped:
                found.setdefault(component, {})[option] = value
    return found


def option_of(name: str, given: Mapping[str, Any], description: Description) -> model_pb2.InputDescription | None:
    """The option that a name means, where the request names another class of guider. Raises InvalidRequest."""
    component, dot, option = name.partition(".")
    choice = description.inputs.get(f"{component}.{CLASS}")
    kind = given.get(f"{component}.{CLASS}")
    if not dot or option == CLASS or choice is None or not isinstance(kind, str):
        return description.inputs.get(name)
    options = next((list(one.fields) for one in choice.fields if one.name == kind), [])
    return next((one for one in options if one.name == option), None)


def _set_scale(found: Options, description: Description, scale: float, values: Mapping[str, Any]) -> None:
    first, *others = _guiders(description) or ["guider"]
    options = found.setdefault(first, {})
    options["guidance_scale"] = scale
    if scale <= _off_scale_of(first, description, values):
        for other in others:
            if f"{other}.guidance_scale" in description.inputs:
                found.setdefault(other, {})["guidance_scale"] = _off_scale_of(other, description, values)
    elif not options.get("enabled", description.defaults.get(f"{first}.enabled") is not False):
        options["enabled"] = True


def _guiders(description: Description) -> list[str]:
    """Names of the guiders that have options, in the pipeline's order; the first takes `guidance_scale`."""
    split = (name.partition(".") for name in description.inputs)
    return list(dict.fromkeys(component for component, _dot, option in split if option == "enabled"))


def _off_scale_of(guider: str, description: Description, values: Mapping[str, Any]) -> float:
    name = f"{guider}.use_original_formulation"
    return off_scale(values.get(name, description.defaults.get(name)))
