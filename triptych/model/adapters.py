"""Adapters of a request, judged by the model's description: which there are, how strong they may be, whose files count.

An adapter is known by its name and by the digest of its files. A job keeps the digest that its name had when it was
accepted, so that it gives the same bits wherever and whenever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from triptych.errors import InvalidRequest
from triptych.model.description import DIGEST_CHARS, accepted_names
from triptych.roles import role_name
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import Adapter, GenerationRequest
from triptych.v1.model_pb2 import AdapterDescription, ModelDescription

ADAPTERS_MAX = 8
"""Most adapters of one job: people combine two or three."""
WEIGHT_MAX = 100.0
"""Strongest weight, either way. Sliders go to 20; far beyond it nothing but noise comes out."""
SETTING = "adapters"
"""Where a job's settings have its adapters, as lists of the items of `Used`; absent where it has none."""


class Used(NamedTuple):
    """An adapter as a job uses it; crosses between roles as a tuple."""

    name: str
    digest: str
    weight: float
    component_weights: Mapping[str, float]
    """Weights that differ from `weight`, by component."""
    components: Sequence[str]
    """What it touches."""

    def weight_of(self, component: str) -> float:
        """How strong it is in one component."""
        return self.component_weights.get(component, self.weight)


def used(request: GenerationRequest, description: ModelDescription) -> list[Used]:
    """The request's adapters, in their order.

    Raises `InvalidRequest` for a name that the model doesn't have, a digest that isn't its own, and bad weights.
    """
    if len(request.adapters) > ADAPTERS_MAX:
        raise InvalidRequest("adapters", f"{len(request.adapters)} adapters", f"at most {ADAPTERS_MAX}")
    known = {described.name: described for described in description.adapters}
    found: dict[str, Used] = {}
    for number, adapter in enumerate(request.adapters):
        field = f"adapters[{number}]"
        if adapter.name not in known:
            accepted = accepted_names(adapter.name, known) if known else "nothing; this fleet has no adapters"
            raise InvalidRequest(f"{field}.name", adapter.name, accepted)
        if why := known[adapter.name].unusable:
            raise InvalidRequest(f"{field}.name", adapter.name, f"adapters that can be used, and it can't: {why}")
        if adapter.name in found:
            raise InvalidRequest(f"{field}.name", adapter.name, "each adapter once")
        _check_digest(f"{field}.digest", adapter, known[adapter.name])
        found[adapter.name] = _used(field, adapter, known[adapter.name])
    return list(found.values())


def pin(request: GenerationRequest, description: ModelDescription) -> None:
    """Write down in an accepted request which files its adapters' names mean."""
    digests = {described.name: described.digest for described in description.adapters}
    for adapter in request.adapters:
        adapter.digest = digests[adapter.name]


def missing(request: GenerationRequest, description: ModelDescription) -> str:
    """Why a worker with this description can't run the accepted request, or nothing."""
    known = {described.name: described.digest for described in description.adapters}
    for adapter in request.adapters:
        if adapter.digest and known.get(adapter.name) != adapter.digest:
            return missing_sentence(adapter.name, adapter.digest, known.get(adapter.name, ""))
    return ""


def missing_sentence(name: str, wanted: str, present: str) -> str:
    """What a worker says that lacks an adapter, or has other files under its name."""
    has = f"has digest {present[:DIGEST_CHARS]} here" if present else "isn't in this worker's registry"
    return f"the adapter {name!r} {has}; the job was accepted with digest {wanted[:DIGEST_CHARS]}"


def offered(workers: Iterable[tuple[str, ModelDescription]]) -> list[AdapterDescription]:
    """The adapters that any job may use: those that all workers have, with equal files, whose role needs them.

    `workers` are role and description of each.
    """
    described = list(workers)
    candidates = {one.name: one for _role, model in described for one in model.adapters}
    return [
        one for _name, one in sorted(candidates.items()) if all(_has(role, model, one) for role, model in described)
    ]


def roles_of(adapter: AdapterDescription, description: ModelDescription) -> set[str]:
    """Roles that need an adapter: encoders, who read the request, and those that hold components which it touches."""
    holders = {role for one in description.components if one.name in adapter.components for role in one.roles}
    return {role_name(ROLE_ENCODER), *holders}


def _has(role: str, model: ModelDescription, wanted: AdapterDescription) -> bool:
    return role not in roles_of(wanted, model) or any(one == wanted for one in model.adapters)


def _check_digest(field: str, adapter: Adapter, described: AdapterDescription) -> None:
    if adapter.digest not in ("", described.digest):
        raise InvalidRequest(field, adapter.digest, f"none, or {described.digest}, which {described.name!r} has now")


def _used(field: str, adapter: Adapter, described: AdapterDescription) -> Used:
    weights = dict(adapter.component_weights)
    weight = adapter.weight if adapter.HasField("weight") else 1.0
    for name, value in {"weight": weight, **{f"component_weights.{key}": one for key, one in weights.items()}}.items():
        if not math.isfinite(value) or abs(value) > WEIGHT_MAX:
            raise InvalidRequest(f"{field}.{name}", value, f"-{WEIGHT_MAX:g} to {WEIGHT_MAX:g}")
    for name in weights:
        if name not in described.components:
            accepted = f"components that {adapter.name!r} touches: {', '.join(described.components)}"
            raise InvalidRequest(f"{field}.component_weights", name, accepted)
    return Used(adapter.name, adapter.digest or described.digest, weight, weights, list(described.components))
