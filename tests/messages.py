"""What workers send, for tests that speak for one."""

from __future__ import annotations

from typing import Any

from triptych.rings.ring import Claimed
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.fleet_service_pb2 import HeartbeatRequest, PhaseToken, RegisterWorkerRequest
from triptych.v1.worker_pb2 import WorkerInfo, WorkerStatus

ADDRESS = "127.0.0.1:1"
"""Where nothing listens."""


def registration(instance_id: str, role: int, **fields: Any) -> RegisterWorkerRequest:
    """A registration; fields of its WorkerInfo are given by their names, `model` is the description."""
    of_info = {name: fields.pop(name) for name in set(fields) & set(WorkerInfo.DESCRIPTOR.fields_by_name) - {"model"}}
    info = WorkerInfo(**{"role": role, "address": ADDRESS, **of_info})
    return RegisterWorkerRequest(instance_id=instance_id, info=info, **fields)


def heartbeat(rank: int, **fields: Any) -> HeartbeatRequest:
    """A report; fields of its WorkerStatus are given by their names."""
    of_status = {name: fields.pop(name) for name in set(fields) & set(WorkerStatus.DESCRIPTOR.fields_by_name)}
    return HeartbeatRequest(rank=rank, status=WorkerStatus(**of_status), **fields)


def token_for(claimed: Claimed, role: Role.ValueType) -> PhaseToken:
    """The right to the phase that was claimed."""
    dispatch = claimed.dispatch
    return PhaseToken(lease=claimed.lease, job_id=dispatch.job_id, generation=dispatch.generation, role=role)
