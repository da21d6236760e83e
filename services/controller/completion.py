"""What a worker may say of a stage that it has done: pure checks, before the journal takes it up.

The controller hands results out and removes them by what stands in a completion, and publishes the next dispatch
from it; so neither may name anything but the job's own.
"""

from __future__ import annotations

from triptych import results
from triptych.errors import InvalidRequest, ResultsMoved
from triptych.rings.ring import DISPATCH_BYTES_MAX
from triptych.roles import NEXT, role_name
from triptych.transport import room
from triptych.v1.dispatch_pb2 import ROLE_DECODER, Dispatch
from triptych.v1.fleet_service_pb2 import CompletePhaseRequest

ARTIFACTS_MAX = 1024
"""Most files of one job: far beyond a request's outputs and what a pipeline yields beside them."""


def check(request: CompletePhaseRequest, result_url: str, address: str) -> None:
    """Raise InvalidRequest for a completion that no honest worker with this registered `address` sends.

    Raises ResultsMoved for files that are under another URL than `result_url`.
    """
    if request.role == ROLE_DECODER:
        _check_artifacts(request)
        if request.result_url != result_url:
            raise ResultsMoved("results are stored under another URL now; it comes with a worker's registration")
    elif request.role in NEXT:
        _check_next(request, address)
    else:
        accepted = ", ".join(role_name(role) for role in (*NEXT, ROLE_DECODER))
        raise InvalidRequest("role", role_name(request.role), accepted)


def _check_artifacts(request: CompletePhaseRequest) -> None:
    if not 1 <= len(request.artifacts) <= ARTIFACTS_MAX:
        raise InvalidRequest("artifacts", f"{len(request.artifacts)} files", f"1 to {ARTIFACTS_MAX} stored files")
    for artifact in request.artifacts:
        results.check_artifact(artifact, request.job_id)


def _check_next(request: CompletePhaseRequest, address: str) -> None:
    dispatch = request.next
    if not dispatch.HasField("room"):
        raise InvalidRequest("next.room", None, "the room that holds the stage's tensors")
    if dispatch.ByteSize() > DISPATCH_BYTES_MAX:
        raise InvalidRequest("next", f"{dispatch.ByteSize()} bytes", f"at most {DISPATCH_BYTES_MAX} bytes")
    if dispatch.job_id != request.job_id:
        raise InvalidRequest("next.job_id", dispatch.job_id, f"{request.job_id}, the job that is completed")
    room.check_ref(dispatch.room)
    check_owner(dispatch, request.lease.rank, address)


def check_owner(dispatch: Dispatch, rank: int, address: str) -> None:
    """Raise InvalidRequest unless a dispatch's room is its sender's, and to be fetched where the sender serves.

    Whoever fetches it shows its own token there.
    """
    if dispatch.room.owner_rank != rank:
        raise InvalidRequest("room.owner_rank", dispatch.room.owner_rank, f"{rank}, the worker's own")
    if dispatch.room.owner_address != address:
        raise InvalidRequest("room.owner_address", dispatch.room.owner_address, f"{address}, as it was registered")
