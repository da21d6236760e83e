"""Everything that Triptych raises on purpose, and what each becomes on the wire.

    TriptychError
    ├── InvalidRequest      the caller's input is wrong; names field, value, what is accepted   INVALID_ARGUMENT
    ├── ModelInvalid        a model folder or hub id can't be loaded or split                   FAILED_PRECONDITION
    ├── MissingExtra        an optional package is not installed; names the extra               FAILED_PRECONDITION
    ├── NotFound            no such job, room, worker or component                              NOT_FOUND
    │   └── RoomGone        the room was released, or its owner died                            NOT_FOUND
    ├── WrongState          the thing exists, but not in a state that allows this               FAILED_PRECONDITION
    │   ├── RingMismatch    the ring's header isn't the one this program was built for          FAILED_PRECONDITION
    │   ├── RingRefused     the card refuses an operation: key, range, right or alignment       FAILED_PRECONDITION
    │   ├── NoCard          no RDMA device here can be used, or the controller offers none      FAILED_PRECONDITION
    │   ├── ResultsMoved    results are stored somewhere else now                           FAILED_PRECONDITION
    │   └── JobFailed       the job ended without a result; says why (raised by clients)        FAILED_PRECONDITION
    ├── LeaseLost           (ticket, attempt) is no longer ours: reaped, acked or taken         ABORTED
    ├── Fenced              this rank was declared dead and must register anew                  PERMISSION_DENIED
    ├── Unauthenticated     the caller didn't prove who it is                                   UNAUTHENTICATED
    ├── NotAllowed          the caller is known, and may not do this                            PERMISSION_DENIED
    ├── Full                back-pressure: try again later                                      RESOURCE_EXHAUSTED
    │   ├── ArenaFull       no room in the arena
    │   ├── RingFull        no free slot
    │   ├── BacklogFull     the controller keeps no more waiting jobs
    │   ├── QuotaFull       the client has as many unfinished jobs, or bytes of them, as it may
    │   ├── WatchesFull     the controller keeps no more open watches
    │   ├── ChecksFull      the controller checks the media of no more requests at once
    │   └── JournalFull     the controller's disk takes no change now
    ├── SourceCorrupt       the checksum of a room was wrong twice                              DATA_LOSS
    ├── Unavailable         the other side isn't there, or not ready; retry with back-off       UNAVAILABLE
    │   ├── JournalDamaged  the controller's disk is broken: it ends, and a person is needed    UNAVAILABLE
    │   ├── TransferFailed  a mover could not reach a room's bytes                              UNAVAILABLE
    │   ├── RingUnreachable an operation on far memory did not complete                         UNAVAILABLE
    │   └── WorkerBroken    this worker can't go on; its supervisor starts another              UNAVAILABLE
    ├── AlreadyExists       the identity is taken by something else                             ALREADY_EXISTS
    ├── JobCancelled        somebody asked for the job to stop                                  CANCELLED
    └── DeadlinePassed      the job's deadline, or the bound of a wait, is over                 DEADLINE_EXCEEDED

Anything else that escapes is a bug and reaches the caller as INTERNAL.
"""

from __future__ import annotations

import grpc


class TriptychError(Exception):
    """Base of all errors raised on purpose."""


class InvalidRequest(TriptychError, ValueError):
    """A value given by the caller can't be used."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        shown = repr(value)
        if len(shown) > SHOWN_CHARS_MAX:
            shown = shown[:SHOWN_CHARS_MAX] + "…"
        super().__init__(f"{field} is {shown}; accepted: {accepted}")
        self.field = field
        self.accepted = accepted

    @classmethod
    def from_message(cls, message: str) -> InvalidRequest:
        """Rebuild one from the text that a server sent."""
        error = cls.__new__(cls)
        Exception.__init__(error, message)
        field, _, rest = message.partition(" is ")
        error.field = field if rest else ""
        error.accepted = rest.rpartition("; accepted: ")[2] if "; accepted: " in rest else ""  # it may have been cut
        return error


class ModelInvalid(TriptychError):
    """The model can't be loaded or split."""


class MissingExtra(TriptychError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'triptych[{extra}]'")


class NotFound(TriptychError):
    """The named thing doesn't exist."""


class RoomGone(NotFound):
    """The room's tensors are no longer there."""


class WrongState(TriptychError):
    """The operation isn't allowed in the present state."""


class RingMismatch(WrongState):
    """Magic, layout version, geometry, epoch or byte order differ."""


class RingRefused(WrongState):
    """The ring's host, or the card, refused an operation: wrong key, range, right or alignment."""


class NoCard(WrongState):
    """Rings can't be reached over RDMA: there is no card, no binding, no right one, or the other side has none."""


class ResultsMoved(WrongState):
    """Results were stored under a URL that the controller no longer has: store them again under its present one."""


class JobFailed(WrongState):
    """The job ended FAILED, so there is no result."""


class LeaseLost(TriptychError):
    """The lease's compare-and-swap was refused."""


class Fenced(TriptychError):
    """The rank was cut off; only a new registration helps."""


class Unauthenticated(TriptychError):
    """The caller has neither a certificate nor a token that is known here."""


class NotAllowed(TriptychError):
    """The caller's certificate or token isn't good for this."""


class Full(TriptychError):
    """A bounded thing is full. Nothing was lost; try again later."""

    retry_after_s = 1.0
    """When it is worth a try: the caller waits at least so long. Each class has a default, an error may have its own.
    Servers send it as gRPC's push-back, `grpc-retry-pushback-ms`."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class ArenaFull(Full):
    """No contiguous space in the arena."""

    retry_after_s = 0.5
    """A room is released when its job ends: seconds, but there are many."""


class RingFull(Full):
    """Every slot of the ring is taken."""

    retry_after_s = 0.2
    """A claim or an ack frees a slot: as often as workers begin jobs."""


class BacklogFull(Full):
    """The controller's bound on waiting jobs is reached."""

    retry_after_s = 2.0
    """A place is free when a job ends. Thousands may wait for it, and each should ask rarely."""


class QuotaFull(Full):
    """The client has as many unfinished jobs, or bytes of their requests, as it may have."""

    retry_after_s = 2.0
    """A place is free when one of its own jobs ends."""


class WatchesFull(Full):
    """The controller's bound on open watches is reached."""

    retry_after_s = 2.0
    """A place is free when somebody's job ends."""


class ChecksFull(Full):
    """The controller's bound on requests whose media are being checked is reached."""

    retry_after_s = 2.0
    """Most checks take less than a second, the dearest 20."""


class JournalFull(Full):
    """The controller's disk takes no change now; nothing was changed."""

    retry_after_s = 1.0
    """A person has to make space, and then it should go on at once."""


class SourceCorrupt(TriptychError):
    """A room's bytes differ from its checksum, also after reading again."""


class Unavailable(TriptychError):
    """The other side isn't there or isn't ready yet."""


class JournalDamaged(Unavailable):
    """The journal can't be read or written, for a reason that doesn't pass by itself."""


class TransferFailed(Unavailable):
    """A mover could not fetch a room from where it lies."""


class RingUnreachable(Unavailable):
    """An operation on the ring's memory failed or did not end in time: the peer or the connection is gone."""


class WorkerBroken(Unavailable):
    """The worker fails everything, or its process is spoiled: it ends."""


class AlreadyExists(TriptychError):
    """The identity is already used for something else."""


class JobCancelled(TriptychError):
    """The job was cancelled while this ran."""


class DeadlinePassed(TriptychError, TimeoutError):
    """A bound in time was reached."""


FAILURE_CHARS_MAX = 300
"""Longest text of a failure that workers send and job records keep: a sentence."""
SHOWN_CHARS_MAX = 120
"""Longest piece of a caller's value repeated in an error: enough to recognise it, too little to leak or flood."""

STATUS_BY_ERROR: dict[type[TriptychError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    MissingExtra: grpc.StatusCode.FAILED_PRECONDITION,
    NotFound: grpc.StatusCode.NOT_FOUND,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    LeaseLost: grpc.StatusCode.ABORTED,
    Fenced: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SourceCorrupt: grpc.StatusCode.DATA_LOSS,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    JobCancelled: grpc.StatusCode.CANCELLED,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The one table from error to gRPC status; a subclass takes its nearest listed ancestor's."""


def public_text(error: BaseException) -> str:
    """What logs, spans and job records may say of an error: no value of a caller's, and no text that isn't ours."""
    if isinstance(error, InvalidRequest):
        head = error.field.partition(".")[0].partition("[")[0]  # what follows may be the caller's own words
        return f"InvalidRequest: {head} can't be used; accepted: {error.accepted}"
    if isinstance(error, TriptychError | OSError) and not isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL for anything not raised on purpose."""
    for cls in type(error).__mro__:
        if cls in STATUS_BY_ERROR:
            return STATUS_BY_ERROR[cls]
    return grpc.StatusCode.INTERNAL
