"""The job in hand: what the event loop and the stage's thread share, and what the controller is told of it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from triptych import memory_report, privacy
from triptych.errors import (
    FAILURE_CHARS_MAX,
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
from triptych.health import is_out_of_memory, is_poison
from triptych.link import Link
from triptych.places import place_of
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import Dispatch, Role
from triptych.v1.job_pb2 import Artifact, GenerationRequest
from triptych.v1.ring_service_pb2 import Lease

log = logging.getLogger(__name__)


@dataclass
class Running:
    """A claimed dispatch and how far it is. Each field is written by one thread only."""

    claimed: Claimed
    epoch: int
    """The controller's epoch in which the lease is valid."""
    stop: bool = False
    """Somebody wants the job to stop: it was cancelled, lost, or is to be handed back."""
    lost: bool = False
    """The lease is another's now: drop everything, report nothing."""
    room_id: int = 0
    """The room that it makes, from before it is in the arena; 0 while the stage runs."""
    declared_room_ids: frozenset[int] = frozenset()
    """Rooms that the worker named when it last registered; what was to be released of them is released."""
    step: int = 0
    step_count: int = 0
    preview_png: bytes = b""

    @property
    def dispatch(self) -> Dispatch:
        """What to do."""
        return self.claimed.dispatch

    def should_stop(self) -> bool:
        """Asked before the stage, and after each step, by the stage's thread.

        Deadlines are the controller's, by its own clock: it orders the stop. A worker whose clock is wrong neither ends
        a job nor refuses one.
        """
        return self.stop


def seconds_of(moment: Timestamp) -> float:
    """A moment in Unix seconds. Unlike protobuf's own conversion this takes what is outside the calendar, too."""
    return float(moment.seconds) + moment.nanos * 1e-9


class PhaseReporter:
    """Tells the controller of the phase's start and end, however often either side reconnects meanwhile."""

    def __init__(self, link: Link, role: Role.ValueType, running: Running, device: str) -> None:
        self._link, self._role, self._running, self._device = link, role, running, device
        self._request = GenerationRequest()
        self._private: list[str] = []
        """What the caller wrote, wherever it is known here. Libraries quote their input in errors."""

    async def start(self) -> GenerationRequest:
        """Begin. Raises LeaseLost when the dispatch is to be dropped."""

        def make() -> Awaitable[pb.StartPhaseResponse]:
            lease, job_id, generation = self._token()
            request = pb.StartPhaseRequest(lease=lease, job_id=job_id, generation=generation, role=self._role)
            return self._link.fleet.StartPhase(request)

        try:
            self._request = (await self._link.call(make)).request
            request = self._request
            self._private += [request.prompt, request.negative_prompt]
            self._private += privacy.texts_in(json_format.MessageToDict(request.parameters))
        except NotFound as error:
            raise LeaseLost(str(error)) from error
        return self._request

    def keep_private(self, texts: Iterable[str]) -> None:
        """Keep a stage's texts out of logs and job records; only encoders see what the caller wrote in the request."""
        self._private += texts

    async def complete(
        self, dispatch: Dispatch | None = None, artifacts: Sequence[Artifact] = (), result_url: str = ""
    ) -> None:
        """The stage is done; files were stored under `result_url`.

        Raises LeaseLost when its work came too late, ResultsMoved when the controller's result URL is another by now.
        """

        def make() -> Awaitable[pb.CompletePhaseResponse]:
            lease, job_id, generation = self._token()
            if artifacts and result_url != self._link.result_url:
                raise ResultsMoved("another controller came back, which stores results elsewhere")
            request = pb.CompletePhaseRequest(
                result_url=result_url,
                lease=lease,
                job_id=job_id,
                generation=generation,
                role=self._role,
                next=dispatch,
                artifacts=artifacts,
                step_count=self._running.step_count,
            )
            return self._link.fleet.CompletePhase(request)

        try:
            await self._link.call(make)
        except InvalidRequest as error:  # ours, not the job's: its client asked for nothing wrong
            raise WrongState(f"the controller refuses this completion: {error.field} can't be used") from error

    async def fail(self, error: Exception) -> str:
        """The stage failed; what was said of it. A job that is over by now, or another's, needs no report."""
        reason, message = _reason_of(error, self._device)
        message = privacy.redact(message, self._private)
        place = ""
        if reason == pb.FAILURE_REASON_STAGE_ERROR:
            place = place_of(error, message)
            whole = "".join(traceback.format_exception(error))
            log.error("stage failed: %s", privacy.redact(whole, self._private))

        def make() -> Awaitable[pb.FailPhaseResponse]:
            lease, job_id, generation = self._token()
            request = pb.FailPhaseRequest(
                lease=lease,
                job_id=job_id,
                generation=generation,
                role=self._role,
                reason=reason,
                message=message[:FAILURE_CHARS_MAX],
                place=place,
            )
            return self._link.fleet.FailPhase(request)

        try:
            await self._link.call(make)
        except TriptychError as refused:  # the job is another's, or the controller knows better: work goes on
            log.info("failure not taken: %s", refused)
        return message

    def _token(self) -> tuple[Lease, str, int]:
        running = self._running
        if running.lost:
            raise LeaseLost(f"job {running.dispatch.job_id} is no longer this worker's")
        return running.claimed.lease, running.dispatch.job_id, running.dispatch.generation


def _reason_of(error: Exception, device: str) -> tuple[pb.FailureReason.ValueType, str]:
    """What to tell the controller about an error."""
    if is_out_of_memory(error):
        return pb.FAILURE_REASON_OUT_OF_MEMORY, memory_report.sentence(error, device)
    if is_poison(error):
        return pb.FAILURE_REASON_WORKER_BROKEN, str(error).strip().partition("\n")[0]
    if isinstance(error, InvalidRequest):
        return pb.FAILURE_REASON_INVALID_REQUEST, str(error)
    if isinstance(error, SourceCorrupt):
        return pb.FAILURE_REASON_SOURCE_CORRUPT, str(error)
    if isinstance(error, RoomGone | TransferFailed):
        return pb.FAILURE_REASON_SOURCE_GONE, str(error)
    if isinstance(error, JobCancelled):
        return pb.FAILURE_REASON_STOPPED, str(error)
    return pb.FAILURE_REASON_STAGE_ERROR, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
