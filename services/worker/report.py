"""What the controller is told of a phase: that it starts, is complete, or has failed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Iterable, Sequence

from google.protobuf import json_format

from triptych.errors import (
    FAILURE_CHARS_MAX,
    AdapterMissing,
    InvalidRequest,
    JobCancelled,
    LeaseLost,
    NotFound,
    ResultsMoved,
    RoomGone,
    SourceCorrupt,
    TransferFailed,
    TriptychError,
    WrongState,
)
from triptych.limits import REQUEST_BYTES_MAX
from triptych.security import privacy
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Dispatch, Role
from triptych.v1.job_pb2 import Artifact, TokensCut

from . import memory_report
from .health import is_out_of_memory, is_poison
from .link import Link
from .places import place_of
from .running import Running

log = logging.getLogger(__name__)


class PhaseReporter:
    """Tells the controller of the phase's start and end, however often either side reconnects meanwhile."""

    def __init__(self, link: Link, role: Role.ValueType, running: Running, device: str) -> None:
        self._link = link
        self._role = role
        self._running = running
        self._device = device
        self._private: list[str] = []
        """What the client wrote, as far as this worker knows it. Libraries quote their input in errors."""

    async def start(self) -> pb.StartPhaseResponse:
        """Begin: what the role needs of the request, and what traces need.

        Raises LeaseLost when the dispatch is to be dropped.
        """

        def make() -> Awaitable[pb.StartPhaseResponse]:
            return self._link.fleet.StartPhase(pb.StartPhaseRequest(token=self._token()))

        size_bytes = REQUEST_BYTES_MAX if self._role == ROLE_ENCODER else 0  # others aren't given the whole request
        try:
            started = await self._link.call(make, size_bytes=size_bytes)
        except NotFound as error:
            raise LeaseLost(str(error)) from error
        request = started.request
        texts = privacy.texts_in(json_format.MessageToDict(request.parameters))
        self.keep_private([request.prompt, request.negative_prompt, *texts])
        return started

    def keep_private(self, texts: Iterable[str]) -> None:
        """Keep these texts out of logs and job records. Beside encoders, a role knows them from its inputs only."""
        self._private += texts

    async def complete(
        self,
        dispatch: Dispatch | None = None,
        artifacts: Sequence[Artifact] = (),
        result_url: str = "",
        tokens_cut: Sequence[TokensCut] = (),
    ) -> None:
        """The phase is done; its artifacts are stored under `result_url`.

        Raises LeaseLost when it came too late, ResultsMoved when the controller's result URL is another by now.
        """

        def make() -> Awaitable[pb.CompletePhaseResponse]:
            token = self._token()
            if artifacts and result_url != self._link.result_url:
                raise ResultsMoved("another controller came back, which stores results elsewhere")
            request = pb.CompletePhaseRequest(
                token=token,
                next=dispatch,
                artifacts=artifacts,
                step_count=self._running.step_count,
                result_url=result_url,
                tokens_cut=tokens_cut,
            )
            return self._link.fleet.CompletePhase(request)

        size_bytes = sum(artifact.ByteSize() for artifact in artifacts)
        try:
            await self._link.call(make, size_bytes=size_bytes)
        except InvalidRequest as error:  # this worker's fault: the job's client asked for nothing wrong
            raise WrongState(f"the controller refuses this completion: {error.field} can't be used") from error

    def failure(self, error: Exception) -> pb.FailPhaseRequest:
        """What is to be said of a phase that failed: made before anything that the error holds is freed."""
        if is_out_of_memory(error):
            found = memory_report.shortage(error, self._device)
            return pb.FailPhaseRequest(
                reason=pb.FAILURE_REASON_OUT_OF_MEMORY,
                message=found.sentence(self._device),
                needed_bytes=found.needed_bytes,
                available_bytes=found.available_bytes,
            )
        reason, message = reason_of(error)
        message = privacy.redact(message, self._private)
        place = ""
        if reason == pb.FAILURE_REASON_STAGE_ERROR:
            place = "" if isinstance(error, AdapterMissing) else place_of(error, message)
            whole = "".join(traceback.format_exception(error))
            log.error("stage failed: %s", privacy.redact(whole, self._private))
        return pb.FailPhaseRequest(reason=reason, message=message[:FAILURE_CHARS_MAX], place=place)

    async def fail(self, failure: pb.FailPhaseRequest) -> None:
        """The phase failed. A job that is over, or another worker's, needs no report."""

        def make() -> Awaitable[pb.FailPhaseResponse]:
            failure.token.CopyFrom(self._token())
            return self._link.fleet.FailPhase(failure)

        try:
            await self._link.call(make)
        except TriptychError as refused:  # the job is no longer this worker's: work goes on
            log.info("failure not taken: %s", refused)

    def _token(self) -> pb.PhaseToken:
        lease, dispatch = self._running.claimed
        if self._running.lost:
            raise LeaseLost(f"job {dispatch.job_id} is no longer this worker's")
        return pb.PhaseToken(lease=lease, job_id=dispatch.job_id, generation=dispatch.generation, role=self._role)


def reason_of(error: Exception) -> tuple[pb.FailureReason.ValueType, str]:
    """What the controller is told about an error that doesn't speak of memory: the reason and a message."""
    if is_poison(error):
        return pb.FAILURE_REASON_WORKER_BROKEN, str(error).strip().partition("\n")[0]
    if isinstance(error, InvalidRequest):
        return pb.FAILURE_REASON_INVALID_REQUEST, str(error)
    if isinstance(error, SourceCorrupt):
        return pb.FAILURE_REASON_SOURCE_CORRUPT, str(error)
    if isinstance(error, RoomGone | TransferFailed):
        return pb.FAILURE_REASON_SOURCE_GONE, str(error)
    if isinstance(error, AdapterMissing):
        return pb.FAILURE_REASON_STAGE_ERROR, str(error)
    if isinstance(error, JobCancelled):
        return pb.FAILURE_REASON_STOPPED, str(error)
    return pb.FAILURE_REASON_STAGE_ERROR, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
