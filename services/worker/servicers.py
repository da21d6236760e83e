"""The gRPC services of workers: decode, call, encode. Until the model is loaded they only serve rooms."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import AsyncIterator, Awaitable

from triptych import ids, rpc
from triptych.errors import DeadlinePassed, EncoderBusy, NotFound, Unavailable
from triptych.rpc import Context
from triptych.security.identity import SCOPE_ADMIN, caller
from triptych.transport.arena import Arena
from triptych.transport.movers import read_room
from triptych.v1 import encoder_service_pb2, encoder_service_pb2_grpc, worker_service_pb2_grpc
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Role
from triptych.v1.fleet_service_pb2 import StartDirectJobRequest, StartDirectJobResponse

from .loop import Worker
from .membership import snapshot

WORKER_SERVICE = "triptych.v1.WorkerService"


def services_of(
    role: Role.ValueType, arena: Arena, controller_address: str, loaded: asyncio.Future[Worker]
) -> list[rpc.Service]:
    """What a worker of `role` serves; `loaded` gets the worker when its model is loaded."""
    worker_service = WorkerServicer(arena, loaded)
    services: list[rpc.Service] = [
        (worker_service_pb2_grpc.add_WorkerServiceServicer_to_server, worker_service, WORKER_SERVICE)
    ]
    if role == ROLE_ENCODER:
        add = encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server
        services.append((add, EncoderServicer(controller_address, loaded), "triptych.v1.EncoderService"))
    return services


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Serves an arena's rooms, and tells of the worker and drains it."""

    def __init__(self, arena: Arena, loaded: asyncio.Future[Worker]) -> None:
        self._arena = arena
        self._loaded = loaded

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Context) -> AsyncIterator[pb.FetchRoomResponse]:
        for chunk in read_room(self._arena, request.room):
            yield pb.FetchRoomResponse(chunk=chunk)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        _worker(self._loaded).draining.set()
        return pb.DrainResponse()

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        worker = snapshot(_worker(self._loaded))
        if not caller().may(SCOPE_ADMIN):  # whose job it runs is known to the controller only
            worker.status.ClearField("progress")
        return pb.GetWorkerResponse(worker=worker)

    async def ConfirmInstance(self, request: pb.ConfirmInstanceRequest, context: Context) -> pb.ConfirmInstanceResponse:
        own = ids.instance_sha256(_worker(self._loaded).equipment.instance_id)
        if not hmac.compare_digest(request.instance_sha256.encode(), own.encode()):
            raise NotFound("this is another instance")
        return pb.ConfirmInstanceResponse()


class EncoderServicer(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Has the controller accept the job and address it to this encoder, which claims it as any other."""

    def __init__(self, controller_address: str, loaded: asyncio.Future[Worker]) -> None:
        self._controller_address = controller_address
        self._loaded = loaded
        self._is_starting = False

    @rpc.uninterrupted
    async def Generate(
        self, request: encoder_service_pb2.GenerateRequest, context: Context
    ) -> encoder_service_pb2.GenerateResponse:
        worker = _worker(self._loaded)
        if self._is_starting or not worker.is_free:  # the controller, which knows better, asks once more
            raise EncoderBusy
        client = caller()
        request_id = request.request_id or str(uuid.uuid4())  # so that a repeated call makes no second job

        def start() -> Awaitable[StartDirectJobResponse]:
            request_of_rank = StartDirectJobRequest(
                rank=worker.link.membership.rank,
                request_id=request_id,
                request=request.request,
                client=client.name,
                jobs_max=client.jobs_max,
            )
            return worker.link.fleet.StartDirectJob(request_of_rank, timeout=context.time_remaining())

        self._is_starting = True
        try:
            async with asyncio.timeout(context.time_remaining()):  # also of the waits between two tries
                response = await worker.link.call(
                    start,
                    size_bytes=request.ByteSize(),
                    waits_for_journal=False,  # the client can ask another, or wait by itself
                )
        except TimeoutError as error:
            raise DeadlinePassed("the controller has not answered in the time that the caller gives") from error
        finally:
            self._is_starting = False
        return encoder_service_pb2.GenerateResponse(job=response.job, controller_address=self._controller_address)


def _worker(loaded: asyncio.Future[Worker]) -> Worker:
    if not loaded.done():
        raise Unavailable("the worker is still loading its model")
    return loaded.result()
