"""The three roles and their rings: request -> encoder -> phase1 -> transformer -> phase2 -> decoder."""

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
"""In the order in which a job passes through them."""
RING_OF: dict[Role.ValueType, Ring.ValueType] = {
    ROLE_ENCODER: RING_REQUEST,
    ROLE_TRANSFORMER: RING_PHASE1,
    ROLE_DECODER: RING_PHASE2,
}
"""The name of the ring that each role claims from. Messages name rings, code keys them by role."""
NEXT: dict[Role.ValueType, Role.ValueType] = {ROLE_ENCODER: ROLE_TRANSFORMER, ROLE_TRANSFORMER: ROLE_DECODER}
"""The role that each role publishes for. Decoders are the last."""


def role_name(role: Role.ValueType) -> str:
    """A role in lower case, for people: `encoder`. A number that is no role is shown as it is."""
    if role not in Role.values():
        return str(role)
    return Role.Name(role).removeprefix("ROLE_").lower()


def ring_name(ring: Ring.ValueType) -> str:
    """A ring in lower case, for people: `phase1`."""
    return Ring.Name(ring).removeprefix("RING_").lower()


ROLE_NAMES = tuple(map(role_name, ROLES))
"""Their names, in the same order."""
