"""Checks on the completions that workers report, before the journal takes them up, and what jobs say of their workers.
Pure.

The controller hands results out and removes them by what stands in a completion, and publishes the next dispatch
from it; so neither may name anything but the job's own.
"""

from __future__ import annotations

import re

from triptych.errors import InvalidRequest, ResultsMoved
from triptych.means.tables import LOSSY
from triptych.media import results
from triptych.rings.ring import DISPATCH_BYTES_MAX
from triptych.roles import NEXT, role_name
from triptych.transport import room
from triptych.v1.dispatch_pb2 import ROLE_DECODER, Dispatch, Role
from triptych.v1.fleet_service_pb2 import CompletePhaseRequest, RegisterWorkerRequest
from triptych.v1.job_pb2 import Job

ARTIFACTS_MAX = 1024
"""Most files of one job: far beyond a request's outputs and what a pipeline yields beside them."""

TOKENS_CUT_MAX = 64
"""Most texts that tokenizers cut off: a few inputs for each of a few tokenizers."""
LOSSY_MAX = 64
"""Most lossy means of one role: a few for each component."""
_NAME = re.compile(r"\w{1,64}")
_LOSSY = re.compile(r"\w{1,16}: [\w.]{1,128} \w{1,64}")
"""As `StageMeans.lossy` makes them."""


def check(request: CompletePhaseRequest, result_url: str, address: str) -> None:
    """Raise InvalidRequest for what no honest worker at `address` sends, ResultsMoved for another `result_url`."""
    if request.token.role == ROLE_DECODER:
        _check_artifacts(request)
        if request.result_url != result_url:
            raise ResultsMoved("results are stored under another URL now; it comes with a worker's registration")
    elif request.token.role in NEXT:
        _check_next(request, address)
        _check_tokens_cut(request)
    else:
        accepted = ", ".join(role_name(role) for role in (*NEXT, ROLE_DECODER))
        raise InvalidRequest("role", role_name(request.token.role), accepted)


def note_lossy(job: Job, role: Role.ValueType, worker: RegisterWorkerRequest | None) -> None:
    """Have a job say which lossy means its worker of `role` has, in place of what an earlier worker of it had.

    They are a setting of the stage, one a line, in which all workers of a role agree.
    """
    text = worker.info.stage_settings.get(LOSSY, "") if worker is not None else ""
    others = [one for one in job.lossy if not one.startswith(f"{role_name(role)}: ")]
    named = [one for one in text.split("\n") if _LOSSY.fullmatch(one)][:LOSSY_MAX]
    job.ClearField("lossy")
    job.lossy.extend(sorted([*others, *named]))


def _check_tokens_cut(request: CompletePhaseRequest) -> None:
    """Names of a pipeline's inputs and components: nothing that a caller wrote may come into a job's record."""
    if len(request.tokens_cut) > TOKENS_CUT_MAX:
        raise InvalidRequest("tokens_cut", f"{len(request.tokens_cut)} texts", f"at most {TOKENS_CUT_MAX}")
    for cut in request.tokens_cut:
        if not (_NAME.fullmatch(cut.input) and _NAME.fullmatch(cut.tokenizer)):
            raise InvalidRequest("tokens_cut", f"{cut.input} by {cut.tokenizer}", "names of inputs and tokenizers")


def _check_artifacts(request: CompletePhaseRequest) -> None:
    if not 1 <= len(request.artifacts) <= ARTIFACTS_MAX:
        raise InvalidRequest("artifacts", f"{len(request.artifacts)} files", f"1 to {ARTIFACTS_MAX} stored files")
    for artifact in request.artifacts:
        results.check_artifact(artifact, request.token.job_id)


def _check_next(request: CompletePhaseRequest, address: str) -> None:
    dispatch = request.next
    if not dispatch.HasField("room"):
        raise InvalidRequest("next.room", None, "the room that holds the stage's tensors")
    if dispatch.ByteSize() > DISPATCH_BYTES_MAX:
        raise InvalidRequest("next", f"{dispatch.ByteSize()} bytes", f"at most {DISPATCH_BYTES_MAX} bytes")
    if dispatch.job_id != request.token.job_id:
        raise InvalidRequest("next.job_id", dispatch.job_id, f"{request.token.job_id}, the job that is completed")
    latents = dispatch.latent_shape
    if dispatch.HasField("latent_shape") and not (_NAME.fullmatch(latents.name) and _NAME.fullmatch(latents.dtype)):
        raise InvalidRequest("next.latent_shape", latents.name, "names of a tensor and of its dtype")
    room.check_ref(dispatch.room)
    check_owner(dispatch, request.token.lease.rank, address)


def check_owner(dispatch: Dispatch, rank: int, address: str) -> None:
    """Raise InvalidRequest unless a room is its sender's and at its address: who fetches it shows its token there."""
    if dispatch.room.owner_rank != rank:
        raise InvalidRequest("room.owner_rank", dispatch.room.owner_rank, f"{rank}, the worker's own")
    if dispatch.room.owner_address != address:
        raise InvalidRequest("room.owner_address", dispatch.room.owner_address, f"{address}, as it was registered")
