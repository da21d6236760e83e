"""Hostile callers for a live fleet: every RPC that reflection shows, with messages, bytes, metadata and manners that
no honest client has.

The methods and their messages come from the servers themselves, by reflection. What means something to them (ranks,
leases, job ids, references to rooms) is asked for again and again, so that calls get far. Each outcome is a status.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.fuzz.nasty import Nasty, mutate
from triptych.v1 import fleet_service_pb2, generation_service_pb2, ring_service_pb2
from triptych.v1.dispatch_pb2 import Ring
from triptych.v1.fleet_service_pb2_grpc import FleetServiceStub
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub

CALLERS = 12
"""Calls under way at once: enough that servers never idle, few enough that each gets somewhere in time."""
LEARN_EVERY = 200
"""Calls between two looks at what exists."""
VALID = GenerationRequest(
    prompt="a", height=32, width=32, num_frames=5, num_inference_steps=2, seed=1, output_format="npy"
)
"""A request that becomes a job, so that there are jobs and leases to meddle with."""
BUGS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
"""No call may end so. (DATA_LOSS would be true of a result that somebody damaged; nobody does here.)"""
WRITTEN_TOO_LATE = "Internal error from Core"
"""What gRPC's client says by itself, and calls INTERNAL, when it writes to a call that the server has answered."""
LEFT_OUT = ("/triptych.v1.WorkerService/Drain",)
"""Ends the worker, as it should: tried last."""
SIZES = {"height": (32, 64), "width": (32, 64), "num_frames": (5, 9), "num_inference_steps": (2, 5)}
"""Smallest and largest that a valid request may ask for here: a large one is valid, and takes minutes."""


@dataclass(frozen=True)
class Method:
    """One RPC of one process."""

    process: str
    path: str
    request: type[Message]
    takes_stream: bool


@dataclass
class Outcomes:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    by_method: Counter[tuple[str, str]] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)

    def add(self, method: Method, error: grpc.aio.AioRpcError | None, sent: str) -> None:
        """Count one call."""
        code = error.code() if error else grpc.StatusCode.OK
        if error is not None and error.details() == WRITTEN_TOO_LATE:
            self.statuses["none, written too late"] += 1
            return
        self.statuses[code.name] += 1
        self.by_method[method.path, code.name] += 1
        if code in BUGS and error is not None:
            self.bugs.append(f"{method.process} {method.path}: {code.name} {error.details()!r} for {sent}")


def discover(addresses: Mapping[str, str]) -> list[Method]:
    """Every method of every service of every process, as reflection describes it."""
    found = []
    for process, address in addresses.items():
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            for name in database.get_services():
                for method in pool.FindServiceByName(name).methods:
                    path = f"/{name}/{method.name}"
                    found.append(Method(process, path, GetMessageClass(method.input_type), method.client_streaming))
    return found


class Caller:
    """Makes hostile calls. `known` is refreshed from the controller as they go on."""

    def __init__(self, addresses: Mapping[str, str], methods: list[Method], rng: random.Random) -> None:
        self._addresses, self._rng = addresses, rng
        self._methods = [method for method in methods if method.path not in LEFT_OUT]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._known: dict[str, list[Any]] = {}
        self.outcomes = Outcomes()
        self._left = 0

    async def run(self, count: int) -> Outcomes:
        """Make `count` calls."""
        self._left = count
        async with contextlib.AsyncExitStack() as stack:
            for process, address in self._addresses.items():
                self._channels[process] = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            await self._learn()
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(self._call_many())
        return self.outcomes

    async def _call_many(self) -> None:
        while self._left > 0:
            self._left -= 1
            if self._left % LEARN_EVERY == 0:
                await self._learn()
            await self._call(self._rng.choice(self._methods))

    async def _call(self, method: Method) -> None:
        rng = self._rng
        bodies = [self._body(method) for _ in range(self._message_count(method))]
        name = method.path if rng.random() > 0.01 else method.path + "x"
        call = self._channels[method.process].stream_stream(name)(
            _stream(bodies, slow=rng.random() < 0.05), timeout=self._timeout_s(), metadata=self._metadata()
        )
        if rng.random() < 0.05:
            asyncio.get_running_loop().call_later(rng.choice((0.0, 0.001, 0.02)), call.cancel)
        error = None
        try:
            async for _ in call:
                if rng.random() < 0.2:
                    call.cancel()
        except grpc.aio.AioRpcError as raised:
            error = raised
        except asyncio.CancelledError:  # gRPC raises it for a call that was cancelled, as if the task had been
            error = None
        self.outcomes.add(method, error, " + ".join(body[:80].hex() for body in bodies) or "no message")

    def _message_count(self, method: Method) -> int:
        if self._rng.random() < 0.9:
            return 1
        return self._rng.choice((0, 2, 3, 20))

    def _timeout_s(self) -> float:
        return self._rng.choice((0.0005, 0.01, 0.1, 0.3, 0.3, 1.0, 1.0, 1.0))

    def _body(self, method: Method) -> bytes:
        rng = self._rng
        if rng.random() < 0.1:
            return rng.randbytes(rng.choice((1, 2, 5, 40, 300, 5000)))
        message = Nasty(rng, self._known).fill(method.request())
        _keep_small(message, rng)
        body = message.SerializeToString()
        if rng.random() < 0.3:
            body = mutate(rng, body, [body])
            with contextlib.suppress(DecodeError):
                bent = method.request.FromString(body)
                _keep_small(bent, rng)
                body = bent.SerializeToString()
        return body

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        rng = self._rng
        odd: list[tuple[str, str | bytes]] = [
            ("traceparent", rng.choice(("", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x" * 500))),
            ("tracestate", "a=" + "b" * 300),
            ("authorization", "Bearer " + "x" * rng.choice((0, 10, 3000))),
            ("x-bin", rng.randbytes(rng.choice((0, 10, 3000)))),
            ("grpc-status-details-bin", rng.randbytes(rng.choice((0, 10, 100)))),
            ("x", "y" * 20_000),
        ]
        return rng.sample(odd, rng.choice((1, 1, 2, 3))) if rng.random() < 0.15 else []

    async def _learn(self) -> None:
        """Look at what exists now."""
        channel = self._channels["controller"]
        generation, fleet, rings = (
            stub(channel) for stub in (GenerationServiceStub, FleetServiceStub, RingServiceStub)
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            state = await fleet.GetFleet(fleet_service_pb2.GetFleetRequest(), timeout=10)
            jobs = await generation.ListJobs(generation_service_pb2.ListJobsRequest(page_size=30), timeout=10)
            slots = [
                slot
                for ring in Ring.values()[1:]
                for slot in (await rings.ListSlots(ring_service_pb2.ListSlotsRequest(ring=ring), timeout=10)).slots
            ]
            self._known = _known_of(state, jobs, slots)

    @property
    def known(self) -> Mapping[str, list[Any]]:
        """What exists, as of the last look."""
        return self._known


def _known_of(
    state: fleet_service_pb2.GetFleetResponse,
    jobs: generation_service_pb2.ListJobsResponse,
    slots: list[ring_service_pb2.RingSlot],
) -> dict[str, list[Any]]:
    """Values by the names of the fields that take them."""
    ranks = [worker.rank for worker in state.workers] or [1]
    held = [slot for slot in slots if slot.state == ring_service_pb2.SLOT_STATE_LEASED]
    ring_of = {slot.dispatch.job_id: Ring.values()[1 + index // 128] for index, slot in enumerate(slots)}
    leases = [
        ring_service_pb2.Lease(
            ring=ring_of[slot.dispatch.job_id], slot=slot.slot, ticket=slot.ticket, attempt=slot.attempt, rank=slot.rank
        )
        for slot in held
    ]
    dispatches = [slot.dispatch for slot in slots if slot.dispatch.job_id]
    known: dict[str, list[Any]] = {
        "rank": ranks,
        "sender_rank": [0, *ranks],
        "receiver_rank": [0, *ranks],
        "transformer_rank": [0, *ranks],
        "decoder_rank": [0, *ranks],
        "owner_rank": ranks,
        "generation": [0, 1],
        "epoch": [state.epoch],
        "service": ["", "triptych.v1.FleetService", "triptych.v1.WorkerService"],
        "config_digest": ["digest of another model"],
        "instance_id": [f"fuzz-{number}" for number in range(8)],
        "job_id": [job.job_id for job in jobs.jobs] or [""],
        "request_id": [job.request_id for job in jobs.jobs[:5]] or [""],
        "prompt": ["a", "\0", "💥"],
        "output_format": ["npy", "png", "mp4", "gif"],
        "claim_id": ["", "mine"],
        "request": [VALID],
        "lease": leases,
        "dispatch": dispatches,
        "next": dispatches,
        "room": [dispatch.room for dispatch in dispatches if dispatch.HasField("room")],
        "room_id": [dispatch.room.room_id for dispatch in dispatches if dispatch.HasField("room")],
    }
    known.update({name: list(bounds) for name, bounds in SIZES.items()})
    return {name: values for name, values in known.items() if values}


def _keep_small(message: Message, rng: random.Random) -> None:
    """Bound what a request, wherever it stands in the message, asks for: see SIZES."""
    if message.DESCRIPTOR.name == "GenerationRequest":
        for name, (least, most) in SIZES.items():
            if not message.HasField(name) or most < getattr(message, name) <= 10_000:
                setattr(message, name, rng.choice((least, most)))
        if 2 < message.num_outputs <= 100:  # type: ignore[attr-defined]
            message.num_outputs = 2  # type: ignore[attr-defined]
        return
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE and not descriptor.is_repeated:
            _keep_small(value, rng)


async def _stream(bodies: list[bytes], *, slow: bool) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body
        if slow:
            await asyncio.sleep(0.01)
