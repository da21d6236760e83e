"""The gRPC services of a text-encoder process: decode, call, encode."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych import rpc
from triptych.errors import NoSuchMethod, Unavailable, WrongState
from triptych.rpc import Context
from triptych.telemetry.text_encoder_metrics import COMPUTED, KEPT, SHARED, TextEncoderMetrics
from triptych.transport.arena import Arena
from triptych.transport.movers import read_room
from triptych.v1 import text_encoder_service_pb2 as pb
from triptych.v1 import text_encoder_service_pb2_grpc, worker_service_pb2_grpc
from triptych.v1.room_pb2 import RoomRef
from triptych.v1.worker_service_pb2 import (
    ConfirmInstanceRequest,
    ConfirmInstanceResponse,
    DrainRequest,
    DrainResponse,
    FetchRoomRequest,
    FetchRoomResponse,
    GetWorkerRequest,
    GetWorkerResponse,
)

from .embeddings import Embeddings
from .waiting import Waiting

if TYPE_CHECKING:  # it imports torch, and the process serves before that
    from .models import Models

TEXT_ENCODER_SERVICE = "triptych.v1.TextEncoderService"
ROOM_SERVICE = "triptych.v1.WorkerService"
NO_WORKER = "a text encoder has rooms as a worker has, but is none: it has no rank and no jobs"


@dataclass(frozen=True)
class Loaded:
    """What a process has once its models are loaded."""

    models: Models
    embeddings: Embeddings
    waiting: Waiting


class RoomServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Serves the rooms to those who don't share this machine's memory."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    async def FetchRoom(self, request: FetchRoomRequest, context: Context) -> AsyncIterator[FetchRoomResponse]:
        for chunk in read_room(self._arena, request.room):
            yield FetchRoomResponse(chunk=chunk)

    async def Drain(self, request: DrainRequest, context: Context) -> DrainResponse:
        raise NoSuchMethod(NO_WORKER)

    async def GetWorker(self, request: GetWorkerRequest, context: Context) -> GetWorkerResponse:
        raise NoSuchMethod(NO_WORKER)

    async def ConfirmInstance(self, request: ConfirmInstanceRequest, context: Context) -> ConfirmInstanceResponse:
        raise NoSuchMethod(NO_WORKER)


class TextEncoderServicer(text_encoder_service_pb2_grpc.TextEncoderServiceServicer):
    """Answers calls of the models. Everything belongs to the event loop, models to their own thread."""

    def __init__(self, loaded: asyncio.Future[Loaded], metrics: TextEncoderMetrics) -> None:
        self._loaded = loaded
        self._metrics = metrics
        self._running: dict[bytes, asyncio.Future[RoomRef]] = {}
        """Calls under way, by what is asked: equal ones wait for the first."""

    async def DescribeTextEncoder(
        self, request: pb.DescribeTextEncoderRequest, context: Context
    ) -> pb.DescribeTextEncoderResponse:
        models = self._ready().models
        return pb.DescribeTextEncoderResponse(
            identity=models.identity,
            config_digest=models.config_digest,
            settings=models.settings,
            components=models.names,
        )

    @rpc.uninterrupted
    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        loaded = self._ready()
        models, embeddings = loaded.models, loaded.embeddings
        if request.identity != models.identity:
            raise WrongState("this text encoder has another model or other settings than the caller means")
        models.module(request.component, request.module)
        key = await asyncio.get_running_loop().run_in_executor(None, _key_of, request)
        if (first := self._running.get(key)) is not None:
            ref, source = await asyncio.shield(first), SHARED
        elif (kept := embeddings.get(key)) is not None:
            ref, source = kept, KEPT
        else:
            ref, source = await self._compute(loaded, key, request), COMPUTED
        self._metrics.answered(source)
        return pb.EncodeResponse(room=ref, is_cached=source != COMPUTED)

    async def _compute(self, loaded: Loaded, key: bytes, request: pb.EncodeRequest) -> RoomRef:
        loop = asyncio.get_running_loop()
        running: asyncio.Future[RoomRef] = loop.create_future()
        self._running[key] = running
        try:
            wanted = tuple(request.wanted)
            encoded = await loaded.waiting.answer(request.component, request.module, request.inputs, wanted)
            ref = await loop.run_in_executor(None, functools.partial(loaded.embeddings.put, key, encoded))
            running.set_result(ref)
            return ref
        except BaseException as error:
            running.set_exception(error if isinstance(error, Exception) else Unavailable("the text encoder stops"))
            running.exception()  # those who wait for it, if any, are told; nobody else needs to be
            raise
        finally:
            del self._running[key]

    def _ready(self) -> Loaded:
        if not self._loaded.done():
            raise Unavailable("the text encoder is still loading its model")
        return self._loaded.result()


def _key_of(request: pb.EncodeRequest) -> bytes:
    """What decides an answer, in 32 bytes that nobody can make two inputs for."""
    head = json.dumps([request.identity, request.component, request.module, *request.wanted])
    return hashlib.sha256(hashlib.sha256(head.encode()).digest() + request.inputs).digest()
