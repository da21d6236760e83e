"""The rules of each RPC, as its options in the protos say (`rules.proto`): who may call it, how large a request is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import MethodOptions

from triptych.externalscaler import externalscaler_pb2
from triptych.security.identity import (
    SCOPE_CONTROLLER,
    SCOPE_DECODER,
    SCOPE_ENCODER,
    SCOPE_READ,
    SCOPE_SUBMIT,
    SCOPE_TRANSFORMER,
)
from triptych.v1 import (
    encoder_service_pb2,
    file_service_pb2,
    fleet_service_pb2,
    generation_service_pb2,
    ring_service_pb2,
    rules_pb2,
    text_encoder_service_pb2,
    worker_service_pb2,
)

SMALL_BYTES_MAX = 64 * 2**10
"""Bound of a request where the protos give none."""
WORKERS = (SCOPE_ENCODER, SCOPE_TRANSFORMER, SCOPE_DECODER)
_MODULES = (
    encoder_service_pb2,
    externalscaler_pb2,
    file_service_pb2,
    fleet_service_pb2,
    generation_service_pb2,
    ring_service_pb2,
    text_encoder_service_pb2,
    worker_service_pb2,
)
_SCOPES: Mapping[rules_pb2.Scope.ValueType, tuple[str, ...]] = {
    rules_pb2.SCOPE_SUBMIT: (SCOPE_SUBMIT,),
    rules_pb2.SCOPE_READ: (SCOPE_READ,),
    rules_pb2.SCOPE_ENCODER: (SCOPE_ENCODER,),
    rules_pb2.SCOPE_WORKER: WORKERS,
    rules_pb2.SCOPE_CONTROLLER: (SCOPE_CONTROLLER,),
}


@dataclass(frozen=True)
class Rules:
    """Of one RPC. The default is for an RPC that the protos don't know: it is for administrators only."""

    scopes: tuple[str, ...] = ()
    """A caller needs one of them; an administrator needs none."""
    span: rules_pb2.Span.ValueType = rules_pb2.SPAN_UNSPECIFIED
    by_capability: bool = False
    """See `rules.proto`."""
    bytes_max: int = SMALL_BYTES_MAX
    plain_bytes_max: int = SMALL_BYTES_MAX
    """Without the request's files."""
    is_repeatable: bool = False
    """The same call once more does nothing that the first hasn't done."""


RULES: Mapping[str, Rules] = {
    f"/{service.full_name}/{method.name}": Rules(
        tuple(name for scope in options[rules_pb2.scope] for name in _SCOPES[scope]),
        options[rules_pb2.span],
        options[rules_pb2.by_capability],
        options[rules_pb2.bytes_max] or SMALL_BYTES_MAX,
        options[rules_pb2.plain_bytes_max] or SMALL_BYTES_MAX,
        method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN,
    )
    for module in _MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    for options in (method.GetOptions().Extensions,)
}
"""By the RPC's path, for example `/triptych.v1.GenerationService/CreateJob`."""


def rules_of(path: str) -> Rules:
    """The rules of an RPC."""
    return RULES.get(path, Rules())
