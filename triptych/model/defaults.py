"""Defaults that a model's folder recommends, checked as a request with these values would be.

Requests that leave a value out get the default, so one that no job can run with would fail them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych.model import costs, fields, parameters, rates
from triptych.model.description import Description
from triptych.v1 import job_pb2

_FIELDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(costs.WORK_INPUTS, ((int,), "a whole number")),
    **dict.fromkeys(("guidance_scale", rates.FIELD), ((int, float), "a finite number")),
    **dict.fromkeys(fields.TEXTS, ((str,), "text")),
}
"""Defaults that are fields of a request; all others are its parameters."""


def check_defaults(description: Description) -> None:
    """Raise `InvalidRequest` for the first recommended value that no job of the model could run with."""
    request = job_pb2.GenerationRequest()
    for name, value in description.recommended.items():
        if value is not None:  # else it counts as left out
            _set(request, name, value)
    for name in fields.TEXTS:
        costs.check_text_bytes(name, getattr(request, name))
    costs.check_parameters_size(request.parameters)
    parsed = parameters.parse(request.parameters, description)
    fields.check_values(request, description)
    costs.check_ranges(parsed, description, costs.work_of(0, description.defaults)["num_inference_steps"])


def _set(request: job_pb2.GenerationRequest, name: str, value: Any) -> None:
    if name not in _FIELDS:
        try:
            request.parameters.update({name: value})
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(f"parameters.{name}", value, "a JSON value of finite numbers") from error
        return
    types, accepted = _FIELDS[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise InvalidRequest(name, value, accepted)
    try:
        setattr(request, name, value)
    except (ValueError, TypeError, OverflowError) as error:  # more than the field holds
        raise InvalidRequest(name, value, accepted) from error
