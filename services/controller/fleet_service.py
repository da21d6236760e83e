"""FleetService: decode, call the controller, encode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from triptych import rpc
from triptych.errors import Fenced
from triptych.rpc import Context
from triptych.security.identity import SCOPE_SUBMIT, Identity, caller
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import fleet_service_pb2_grpc as pb_grpc
from triptych.v1.job_pb2 import JobState

from .controller import Controller
from .fleet import Member
from .visibility import check_client, visible_client, visible_worker


class FleetServicer(pb_grpc.FleetServiceServicer):
    """The controller's side for workers."""

    def __init__(self, controller: Controller, rings_reason: str) -> None:
        """`rings_reason` says why the rings are reached as they are."""
        self._core = controller.core
        self._controller = controller
        self._rings_reason = rings_reason

    @rpc.uninterrupted
    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Context) -> pb.RegisterWorkerResponse:
        return await self._controller.membership.register(request)

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        """Reports are read by a task of their own; this generator sends orders as they arise."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        self._controller.membership.report(first)
        member = self._core.fleet.get(first.rank)
        stream = member.open_stream()
        reader = asyncio.create_task(self._read(request_iterator, member))
        try:
            while member.stream == stream and not reader.done():
                orders = member.take_orders()
                if orders.ByteSize():
                    yield orders
                if self._core.fleet.members.get(member.rank) is not member:
                    raise Fenced(f"rank {member.rank} was declared dead; register again")
                await member.changed.wait()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self, reports: AsyncIterator[pb.HeartbeatRequest], member: Member) -> None:
        try:
            with contextlib.suppress(Fenced):  # `Heartbeat` itself says so to the worker
                async for report in reports:
                    self._controller.membership.report(report)
        finally:
            member.changed.set()

    @rpc.uninterrupted
    async def StartPhase(self, request: pb.StartPhaseRequest, context: Context) -> pb.StartPhaseResponse:
        return await self._controller.phases.start(request)

    @rpc.uninterrupted
    async def CompletePhase(self, request: pb.CompletePhaseRequest, context: Context) -> pb.CompletePhaseResponse:
        await self._controller.phases.complete(request)
        return pb.CompletePhaseResponse()

    @rpc.uninterrupted
    async def FailPhase(self, request: pb.FailPhaseRequest, context: Context) -> pb.FailPhaseResponse:
        await self._controller.phases.fail(request)
        return pb.FailPhaseResponse()

    @rpc.uninterrupted
    async def StartDirectJob(self, request: pb.StartDirectJobRequest, context: Context) -> pb.StartDirectJobResponse:
        # The encoder has asked its caller who it is; nobody else may call this.
        check_client(request.client, caller())
        client = Identity(request.client, frozenset((SCOPE_SUBMIT,)), request.jobs_max)
        job = await self._controller.lifecycle.start_direct(request.rank, request.request_id, request.request, client)
        return pb.StartDirectJobResponse(job=job)

    @rpc.uninterrupted
    async def UnregisterWorker(
        self, request: pb.UnregisterWorkerRequest, context: Context
    ) -> pb.UnregisterWorkerResponse:
        await self._controller.membership.unregister(request)
        return pb.UnregisterWorkerResponse()

    async def GetFleet(self, request: pb.GetFleetRequest, context: Context) -> pb.GetFleetResponse:
        response = pb.GetFleetResponse(epoch=self._core.epoch)
        ledger = self._core.ledger
        for member in self._core.fleet.registered():
            response.workers.append(visible_worker(ledger, member.describe()))
        for ring in self._core.rings.values():
            stats = ring.stats()
            response.rings.add(
                ring=ring.name,
                slot_count=ring.slot_count,
                ready_count=stats.ready_count,
                leased_count=stats.leased_count,
                redelivered_count=stats.redelivered_count,
                driver=ring.driver.name,
                driver_reason=self._rings_reason,
            )
        response.waiting_models.extend(self._core.model.waiting(visible_client()))
        if (model := self._core.model.present) is not None:
            response.model = model.model
            response.model_digest = model.config_digest
        counts = await ledger.journal.counts(visible_client())
        for state, count in sorted(counts.items()):
            response.job_counts.add(state=JobState.ValueType(state), count=count)
        return response
