"""FleetService: decode, call the controller, encode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.controller.controller import Controller
from services.controller.fleet import Member
from services.controller.supervisor import Supervisor
from services.controller.visibility import check_client, owner_filter, visible_worker
from triptych import rpc
from triptych.errors import FAILURE_CHARS_MAX, Fenced
from triptych.identity import SCOPE_SUBMIT, Identity, caller
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import fleet_service_pb2_grpc as pb_grpc
from triptych.v1.job_pb2 import ATTEMPT_KIND_GIVEN_UP, ATTEMPT_KIND_WORKER_SICK, JobState

Context = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(pb_grpc.FleetServiceServicer):
    """The controller's side for workers."""

    def __init__(self, controller: Controller, supervisor: Supervisor, epoch: int, rings_reason: str) -> None:
        self._controller = controller
        self._supervisor = supervisor
        self._epoch = epoch
        self._rings_reason = rings_reason

    @rpc.uninterrupted
    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Context) -> pb.RegisterWorkerResponse:
        return await self._supervisor.register(request)

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        """Reports are read by a task of their own; this generator sends orders as they arise."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        self._controller.report(first)
        member = self._controller.fleet.get(first.rank)
        stream = member.open_stream()
        reader = asyncio.create_task(self._read(request_iterator, member))
        try:
            while member.stream == stream and not reader.done():
                orders = member.take_orders()
                if orders.ByteSize():
                    yield orders
                if self._controller.fleet.members.get(member.rank) is not member:
                    raise Fenced(f"rank {member.rank} was declared dead; register anew")
                await member.changed.wait()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self, reports: AsyncIterator[pb.HeartbeatRequest], member: Member) -> None:
        try:
            async for report in reports:
                self._controller.report(report)
        except Fenced:
            return  # `Heartbeat` itself says so to the worker
        finally:
            member.changed.set()

    @rpc.uninterrupted
    async def StartPhase(self, request: pb.StartPhaseRequest, context: Context) -> pb.StartPhaseResponse:
        return pb.StartPhaseResponse(request=await self._controller.start_phase(request))

    @rpc.uninterrupted
    async def CompletePhase(self, request: pb.CompletePhaseRequest, context: Context) -> pb.CompletePhaseResponse:
        await self._controller.complete_phase(request, self._supervisor.result_url)
        return pb.CompletePhaseResponse()

    @rpc.uninterrupted
    async def FailPhase(self, request: pb.FailPhaseRequest, context: Context) -> pb.FailPhaseResponse:
        await self._controller.fail_phase(request)
        return pb.FailPhaseResponse()

    @rpc.uninterrupted
    async def StartDirectJob(self, request: pb.StartDirectJobRequest, context: Context) -> pb.StartDirectJobResponse:
        # The encoder has asked its caller who it is; nobody else may call this.
        check_client(request.client, caller())
        client = Identity(request.client, frozenset((SCOPE_SUBMIT,)), request.jobs_max)
        job, lease, dispatch = await self._controller.start_direct(
            request.rank, request.request_id, request.request, client
        )
        return pb.StartDirectJobResponse(job=job, lease=lease, dispatch=dispatch if lease else None)

    @rpc.uninterrupted
    async def UnregisterWorker(
        self, request: pb.UnregisterWorkerRequest, context: Context
    ) -> pb.UnregisterWorkerResponse:
        if request.rank in self._controller.fleet.members:
            self._controller.fleet.check(request.rank)
        reason = f"rank {request.rank} is broken: {request.broken}" if request.broken else f"rank {request.rank} left"
        kind = ATTEMPT_KIND_WORKER_SICK if request.broken else ATTEMPT_KIND_GIVEN_UP
        await self._supervisor.bury(request.rank, reason[:FAILURE_CHARS_MAX], kind)
        return pb.UnregisterWorkerResponse()

    async def GetFleet(self, request: pb.GetFleetRequest, context: Context) -> pb.GetFleetResponse:
        response = pb.GetFleetResponse(epoch=self._epoch)
        ledger, who = self._controller.ledger, caller()
        for member in self._controller.fleet.registered():
            response.workers.append(visible_worker(ledger, member.describe(), who))
        for ring, memory in self._controller.rings.items():
            stats = memory.stats()
            response.rings.add(
                ring=ring,
                slot_count=stats.slot_count,
                ready_count=stats.ready_count,
                leased_count=stats.leased_count,
                redelivered_count=stats.redelivered_count,
                driver=memory.driver_name,
                driver_reason=self._rings_reason,
            )
        response.waiting_models.extend(self._controller.models.waiting(owner_filter(who)))
        if (model := self._controller.model) is not None:
            response.model, response.model_digest = model.model, model.config_digest
        counts = await ledger.journal.counts(owner_filter(who))
        for state, count in sorted(counts.items()):
            response.job_counts.add(state=JobState.ValueType(state), count=count)
        return response
