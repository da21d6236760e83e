"""EncoderService: jobs whose client has chosen this encoder."""

from __future__ import annotations

import uuid
from typing import Any

import grpc

from triptych import rpc
from triptych.errors import EncoderBusy, Unavailable
from triptych.security.identity import caller
from triptych.v1 import encoder_service_pb2 as pb
from triptych.v1 import encoder_service_pb2_grpc as pb_grpc
from triptych.v1.fleet_service_pb2 import StartDirectJobRequest, StartDirectJobResponse

from .loop import Worker

Context = grpc.aio.ServicerContext[Any, Any]


class EncoderServicer(pb_grpc.EncoderServiceServicer):
    """Has the controller accept the job and address it to this encoder, which claims it as any other."""

    def __init__(self, controller_address: str) -> None:
        self._controller_address = controller_address
        self._is_starting = False
        self.worker: Worker | None = None

    @property
    def service(self) -> rpc.Service:
        """For `rpc.start_server`."""
        return (pb_grpc.add_EncoderServiceServicer_to_server, self, "triptych.v1.EncoderService")

    @rpc.uninterrupted
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        if self.worker is None:
            raise Unavailable("the encoder is still loading its model")
        if self._is_starting or not self.worker.is_free:  # the controller, which knows better, asks once more
            raise EncoderBusy
        self._is_starting = True
        try:
            response = await self._start(self.worker, request)
        finally:
            self._is_starting = False
        return pb.GenerateResponse(job=response.job, controller_address=self._controller_address)

    async def _start(self, worker: Worker, request: pb.GenerateRequest) -> StartDirectJobResponse:
        client = caller()
        request_id = request.request_id or str(uuid.uuid4())  # so that a repeated call makes no second job
        return await worker.link.call(
            lambda: worker.link.fleet.StartDirectJob(
                StartDirectJobRequest(
                    rank=worker.link.membership.rank,
                    request_id=request_id,
                    request=request.request,
                    client=client.name,
                    jobs_max=client.jobs_max,
                )
            ),
            size_bytes=request.ByteSize(),
            waits_for_journal=False,  # the client can ask another, or wait by itself
        )
