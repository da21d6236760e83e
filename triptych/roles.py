"""How roles and rings are joined: request -> encoder -> phase1 -> transformer -> phase2 -> decoder."""

from __future__ import annotations

from triptych.v1.dispatch_pb2 import (
    RING_PHASE1,
    RING_PHASE2,
    RING_REQUEST,
    ROLE_DECODER,
    ROLE_ENCODER,
    ROLE_TRANSFORMER,
    Ring,
    Role,
)

ROLES = (ROLE_ENCODER, ROLE_TRANSFORMER, ROLE_DECODER)
"""In the order in which a job passes them."""
RING_OF: dict[Role.ValueType, Ring.ValueType] = {
    ROLE_ENCODER: RING_REQUEST,
    ROLE_TRANSFORMER: RING_PHASE1,
    ROLE_DECODER: RING_PHASE2,
}
"""Where each role claims."""
NEXT: dict[Role.ValueType, Role.ValueType] = {ROLE_ENCODER: ROLE_TRANSFORMER, ROLE_TRANSFORMER: ROLE_DECODER}
"""Whom each role publishes for; decoders are the last."""
SINK_OF: dict[Role.ValueType, Ring.ValueType] = {role: RING_OF[after] for role, after in NEXT.items()}
"""Where each role publishes."""


def role_name(role: Role.ValueType) -> str:
    """A role in lower case, for people: `encoder`. A number that is no role is shown as it is."""
    if role not in Role.values():
        return str(role)
    return Role.Name(role).removeprefix("ROLE_").lower()


def ring_name(ring: Ring.ValueType) -> str:
    """A ring in lower case, for people: `phase1`."""
    return Ring.Name(ring).removeprefix("RING_").lower()
