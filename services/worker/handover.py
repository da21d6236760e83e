"""A phase's end at the rings: the dispatch for the next role is published, then the worker's own is acked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from triptych import telemetry
from triptych.errors import Fenced, LeaseLost, RingFull
from triptych.rings.access import RingAccess
from triptych.rings.ring import DISPATCH_BYTES_MAX
from triptych.roles import NEXT, RING_OF, ring_name
from triptych.rpc.backoff import Backoff
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Dispatch, Role
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.room_pb2 import Manifest, RoomRef

from .link import TRANSIENT, Link
from .running import Running

log = logging.getLogger(__name__)

TENSORS_SHOWN_MAX = 8
"""Tensors named in a dispatch. The manifest has all; these are for people, and a slot is 4 KiB."""


def next_dispatch(
    before: Dispatch, request: GenerationRequest, ref: RoomRef, manifest: Manifest, sender_rank: int
) -> Dispatch:
    """The dispatch that hands a room to the role after that of `before`."""
    is_encoder = before.role == ROLE_ENCODER
    dispatch = Dispatch(
        job_id=before.job_id,
        generation=before.generation,
        role=NEXT[before.role],
        room=ref,
        tensors=sorted(manifest.tensors, key=lambda t: -t.size_bytes)[:TENSORS_SHOWN_MAX],
        sender_rank=sender_rank,
        model_digest=before.model_digest,
        receiver_rank=request.transformer_rank if is_encoder else before.decoder_rank,
        decoder_rank=request.decoder_rank if is_encoder else 0,
        traceparent=before.traceparent or telemetry.inject(),
    )
    if before.HasField("deadline_time"):
        dispatch.deadline_time.CopyFrom(before.deadline_time)
    for tensor in manifest.tensors:
        if tensor.name == "latents":
            dispatch.latent_shape.name = tensor.name
            dispatch.latent_shape.dimensions.extend(tensor.shape)
            dispatch.latent_shape.dtype = tensor.dtype
    while dispatch.tensors and dispatch.ByteSize() > DISPATCH_BYTES_MAX:
        dispatch.tensors.pop()
    return dispatch


def shape_of(dispatch: Dispatch) -> str | None:
    """The shape of the latents in a dispatch's room, as `1x16x2x4x8`; None where there are none."""
    return "x".join(map(str, dispatch.latent_shape.dimensions)) or None


def messaging(ring: str, name: str, kind: str) -> dict[str, str]:
    """Attributes of a span for what goes through a ring, by OpenTelemetry's conventions for messages
    (https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/)."""
    return {
        "messaging.system": "triptych",
        "messaging.destination.name": ring,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }


class Handover:
    """Publishes and acks until the ring has taken it or the lease is lost."""

    def __init__(self, link: Link, access: RingAccess, role: Role.ValueType) -> None:
        self._link = link
        self._access = access
        self._source = access.ring(role)

    async def publish(self, running: Running, dispatch: Dispatch) -> None:
        """Hand a room to the next role. After a restart the controller does it, from its journal."""
        sink = self._access.ring(dispatch.role)
        rank = self._link.membership.rank
        ring = ring_name(RING_OF[dispatch.role])
        with telemetry.span(
            f"publish {ring}",
            kind="producer",
            also=messaging(ring, "publish", "send"),
            job_id=dispatch.job_id,
            rank=rank,
            ring=ring,
            latent_shape=shape_of(dispatch),
        ):
            await self._until_taken(running, lambda: sink.publish(dispatch, dispatch.receiver_rank))

    async def ack(self, running: Running) -> None:
        """End the lease: the phase is over."""
        await self._until_taken(running, lambda: self._source.ack(running.claimed.lease))

    async def nack(self, running: Running) -> None:
        """Give the dispatch back, for another worker."""
        await self._until_taken(running, lambda: self._source.nack(running.claimed.lease))

    async def _until_taken(self, running: Running, call: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff()
        while self._link.membership.epoch == running.epoch and not running.lost:
            try:
                await call()
                return
            except LeaseLost:
                return
            except (*TRANSIENT, RingFull, Fenced) as error:
                log.info("the ring did not take it: %s; trying again", error)
                await asyncio.sleep(backoff.next_s())
                await self._link.registered.wait()
