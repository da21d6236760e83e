"""EncoderService: a request that starts right here, without the request ring."""

from __future__ import annotations

import uuid
from typing import Any

import grpc

from triptych import rpc
from triptych.errors import Full, Unavailable
from triptych.identity import Identity, caller
from triptych.rings.ring import Claimed
from triptych.v1 import encoder_service_pb2 as pb
from triptych.v1 import encoder_service_pb2_grpc as pb_grpc
from triptych.v1.fleet_service_pb2 import StartDirectJobRequest
from triptych.worker import Worker

Context = grpc.aio.ServicerContext[Any, Any]


class EncoderServicer(pb_grpc.EncoderServiceServicer):
    """Registers the job with the controller and hands it to this encoder's loop."""

    def __init__(self, controller_address: str) -> None:
        self._controller_address = controller_address
        self._is_starting = False
        self.worker: Worker | None = None

    @property
    def service(self) -> rpc.Service:
        """For `rpc.start_server`."""
        return (pb_grpc.add_EncoderServiceServicer_to_server, self, "triptych.v1.EncoderService")

    @rpc.uninterrupted  # or a client that goes away takes with it the lease of a job that the controller has accepted
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        worker = self.worker
        if worker is None:
            raise Unavailable("the encoder is still loading its model")
        if self._is_starting or not worker.is_free:
            raise Full("this encoder is busy; ask another, or send the job to the controller")
        self._is_starting = True
        try:
            return await self._start(worker, request, caller())
        finally:
            self._is_starting = False

    async def _start(self, worker: Worker, request: pb.GenerateRequest, client: Identity) -> pb.GenerateResponse:
        request_id = request.request_id or str(uuid.uuid4())  # so that a repeated call makes no second job
        response = await worker.link.call(
            lambda: worker.link.fleet.StartDirectJob(
                StartDirectJobRequest(
                    rank=worker.link.rank,
                    request_id=request_id,
                    request=request.request,
                    client=client.name,
                    jobs_max=client.jobs_max,
                )
            ),
            waits_for_journal=False,  # the client may ask another, or wait by itself
        )
        if response.HasField("lease"):
            worker.take_direct(Claimed(response.lease, response.dispatch))
        return pb.GenerateResponse(job=response.job, controller_address=self._controller_address)
