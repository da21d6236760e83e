"""WorkerService, on every worker: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from triptych import rpc
from triptych.errors import Unavailable
from triptych.security.identity import SCOPE_ADMIN, caller
from triptych.transport.arena import Arena
from triptych.transport.movers import read_room
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc

from .loop import Worker
from .membership import snapshot

Context = grpc.aio.ServicerContext[Any, Any]

WORKER_SERVICE = "triptych.v1.WorkerService"


class WorkerServicer(pb_grpc.WorkerServiceServicer):
    """Serves an arena's rooms, and tells and drains the worker once its model is loaded."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.worker: Worker | None = None

    @property
    def service(self) -> rpc.Service:
        """For `rpc.start_server`."""
        return (pb_grpc.add_WorkerServiceServicer_to_server, self, WORKER_SERVICE)

    async def FetchRoom(self, request: pb.FetchRoomRequest, context: Context) -> AsyncIterator[pb.FetchRoomResponse]:
        for chunk in read_room(self._arena, request.room):
            yield pb.FetchRoomResponse(chunk=chunk)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        self._loaded().draining.set()
        return pb.DrainResponse()

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        worker = snapshot(self._loaded())
        if not caller().may(SCOPE_ADMIN):  # whose job it runs is known to the controller only
            worker.status.ClearField("progress")
        return pb.GetWorkerResponse(worker=worker)

    def _loaded(self) -> Worker:
        if self.worker is None:
            raise Unavailable("the worker is still loading its model")
        return self.worker
