"""What a worker tells its controller, and what it does on the controller's answers and orders."""

from __future__ import annotations

import logging
import os
import time

from triptych import telemetry
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import worker_pb2

from .loop import Worker
from .running import Running

log = logging.getLogger(__name__)


class FleetMember:
    """A worker as a member of the fleet: the `link.Member` of its link."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._arena = worker.equipment.arena
        self._declared: Running | None = None
        """The job that the last registration named."""

    def describe(self) -> pb.RegisterWorkerRequest:
        worker = self._worker
        room_ids = self._arena.rooms()
        request = pb.RegisterWorkerRequest(
            instance_id=worker.equipment.instance_id,
            info=_info(worker),
            model=worker.equipment.model,
            room_ids=room_ids,
        )
        self._declared = worker.running
        if (running := worker.running) is not None:
            running.declared_room_ids = frozenset(room_ids)
            if not running.lost:
                request.running.dispatch.CopyFrom(running.dispatch)
                request.running.lease.CopyFrom(running.claimed.lease)
        return request

    def report(self) -> pb.HeartbeatRequest:
        report = pb.HeartbeatRequest(status=_status(self._worker))
        if (running := self._worker.running) is not None:
            report.preview_png = running.preview_png
            running.preview_png = b""
            if not running.lost:
                report.held_leases.append(running.claimed.lease)
        return report

    def registered(self, response: pb.RegisterWorkerResponse) -> None:
        telemetry.identify(response.rank, response.epoch)
        worker = self._worker
        kept_id = 0
        if (running := worker.running) is not None:
            if running is not self._declared:  # a late claim, which the answer doesn't know of
                if (running.claimed.lease.rank, running.epoch) != worker.link.membership:
                    running.lose()  # its ring is gone, or its rank was reaped
            elif response.HasField("adopted_lease"):
                running.claimed = running.claimed._replace(lease=response.adopted_lease)
                running.epoch = response.epoch
                worker.access.adopt(response.adopted_lease)
                kept_id = running.room_id  # made, but the controller hasn't heard of it yet
            else:
                running.lose()
        for room_id in response.release_room_ids:
            if room_id != kept_id:
                self._arena.release(room_id)

    def apply_orders(self, orders: pb.HeartbeatResponse) -> None:
        for room_id in orders.release_room_ids:
            self._arena.release(room_id)
        running = self._worker.running
        if running is not None and running.dispatch.job_id in orders.cancel_job_ids:
            running.stop = True
            log.debug("told to stop the job", extra={"job_id": running.dispatch.job_id})
        if self._worker.source.name in orders.ready_rings:
            self._worker.source.hint()


def snapshot(worker: Worker) -> worker_pb2.Worker:
    """The worker, for people."""
    return worker_pb2.Worker(rank=worker.link.membership.rank, info=_info(worker), status=_status(worker))


def _info(worker: Worker) -> worker_pb2.WorkerInfo:
    equipment = worker.equipment
    return worker_pb2.WorkerInfo(
        role=equipment.stage.role,
        address=equipment.address,
        host_id=equipment.arena.host_id,
        process_id=os.getpid(),
        model=equipment.model.model,
        arena_size_bytes=equipment.arena.size_bytes,
        parameter_bytes=sum(equipment.stage.component_bytes.values()),
        component_bytes=equipment.stage.component_bytes,
        mooncake=equipment.mooncake,
        stage_settings=equipment.stage.settings,
        memory_id=equipment.stage.device_uuid or equipment.arena.host_id,
    )


def _status(worker: Worker) -> worker_pb2.WorkerStatus:
    equipment = worker.equipment
    progress = None
    if (running := worker.running) is not None:
        dispatch = running.dispatch
        progress = worker_pb2.StepProgress(job_id=dispatch.job_id, generation=dispatch.generation)
        progress.step = running.step
        progress.step_count = running.step_count
    return worker_pb2.WorkerStatus(
        state=_state(worker),
        progress=progress,
        arena_used_bytes=equipment.arena.used_bytes,
        room_count=len(equipment.arena.rooms()),
        device_memory_bytes=equipment.stage.device_memory_bytes,
        fetch_count_by_mover=worker.phases.rooms.fetch_count_by_mover,
        rings=worker.access.choice,
        waiting_for=worker.waiting_for,
        pixels_done_max=worker.phases.capacity.done_max,
        pixels_failed_min=worker.phases.capacity.failed_min(time.monotonic()),
    )


def _state(worker: Worker) -> worker_pb2.WorkerState.ValueType:
    if worker.draining.is_set():
        return worker_pb2.WORKER_STATE_DRAINING
    if worker.phases.health.is_suspect:
        return worker_pb2.WORKER_STATE_QUARANTINED
    if worker.phases.rooms.waiting_for:
        return worker_pb2.WORKER_STATE_FULL
    return worker_pb2.WORKER_STATE_BUSY if worker.running else worker_pb2.WORKER_STATE_IDLE
