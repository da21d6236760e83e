"""Every error that Triptych raises on purpose. `triptych/rpc/status.py` gives the gRPC status of each.

Any other exception that escapes is a bug, and the caller gets INTERNAL. The names of the classes travel to clients as
reasons (docs/errors.md), so they stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

EXIT_FAILED = 1
"""What a process or a command exits with when it can't go on."""
EXIT_CONFIGURATION = 2
"""What it exits with for bad input or configuration: another start with the same would end in the same way."""


class TriptychError(Exception):
    """Base of all errors raised on purpose."""

    retry_after_s: float | None = None
    """The caller waits at least so long before it tries again; None where that doesn't help, or nobody can say. Each
    class has a default; an error can have its own. Servers send it as RetryInfo."""


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
        # The text may have been cut.
        error.accepted = rest.rpartition("; accepted: ")[2] if "; accepted: " in rest else ""
        return error


class ModelInvalid(TriptychError):
    """The model can't be loaded or split."""


class MissingExtra(TriptychError, ImportError):
    """An optional dependency is missing, or can't be imported."""

    def __init__(self, package: str, extra: str, purpose: str, reason: str = "") -> None:
        """`extra` is Triptych's extra that installs the package; empty if none does."""
        what = f"'triptych[{extra}]'" if extra else package
        why = f"; {reason}" if reason else ""
        super().__init__(f"{purpose} needs the package {package!r}: pip install {what}{why}")


class NotFound(TriptychError):
    """The named thing doesn't exist."""


class RoomGone(NotFound):
    """The room was released, or its owner died."""


class WrongState(TriptychError):
    """The operation isn't allowed in the present state."""


class RingMismatch(WrongState):
    """The ring's magic, layout version, geometry, epoch or byte order differs from this program's."""


class RingRefused(WrongState):
    """The ring's host, or the card, refused an operation: wrong key, range, right or alignment."""


class NoCard(WrongState):
    """Rings can't be reached over RDMA: a card or a binding is missing here, or the other side has none."""


class ResultsMoved(WrongState):
    """Results were stored under an old URL of the controller: store them again under its present one."""


class JobFailed(WrongState):
    """The job ended FAILED, so there is no result. Clients raise it."""


class LeaseLost(TriptychError):
    """The lease is no longer held: its entry was reaped, acked or taken by another."""


class Fenced(TriptychError):
    """The rank was cut off; the worker must register again."""


class Unauthenticated(TriptychError):
    """The caller has neither a known certificate nor a known token."""


class NotAllowed(TriptychError):
    """The caller's certificate or token doesn't allow this."""


class Full(TriptychError):
    """A bounded thing is full. Nothing was lost; try again later."""

    retry_after_s: float = 1.0
    """Servers send it as gRPC's push-back, too: `grpc-retry-pushback-ms`."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class ArenaFull(Full):
    """No contiguous space in the arena."""

    retry_after_s = 0.5
    """A room is released when its job ends. That takes seconds, but there are many jobs."""


class RingFull(Full):
    """Every slot of the ring is taken."""

    retry_after_s = 0.2
    """A claim or an ack frees a slot: as often as workers begin jobs."""


class BacklogFull(Full):
    """The controller's bound on waiting jobs is reached."""

    retry_after_s = 2.0
    """A place becomes free when a job ends. Thousands may wait for it, so each should ask rarely."""


class QuotaFull(Full):
    """The client has as many unfinished jobs, or bytes of their requests, as it may have."""

    retry_after_s = 2.0
    """A place becomes free when one of the client's own jobs ends."""


class WatchesFull(Full):
    """The controller's bound on open watches is reached."""

    retry_after_s = 2.0
    """A place becomes free when a watched job ends."""


class EncoderBusy(Full):
    """An encoder takes no job directly while it has another."""

    def __init__(self, message: str = "this encoder is busy; ask another, or send the job to the controller") -> None:
        super().__init__(message)


class ChecksFull(Full):
    """The controller's bound on requests whose media are being checked is reached."""

    retry_after_s = 2.0
    """Most checks take less than a second, the most expensive 20."""


class UploadsFull(Full):
    """The controller's bound on uploads, or one client's share of it, is reached."""

    retry_after_s = 2.0
    """A place becomes free when a call that writes ends, an upload is deleted, or one is an hour old."""


class UploadBusy(UploadsFull):
    """Another call writes this upload."""

    retry_after_s = 1.0
    """On a usual line, the other call ends within seconds."""


class JournalFull(Full):
    """The journal takes no change now: its disk is full, or PostgreSQL doesn't answer. Nothing was changed."""

    retry_after_s = 1.0
    """A person has to make space, and work should go on soon after that."""


class SourceCorrupt(TriptychError):
    """A room's bytes differ from its checksum, even in a second read."""


class Unavailable(TriptychError):
    """The other side isn't there or isn't ready yet."""

    retry_after_s: float | None = 1.0
    """A controller restarts in less than a second."""


class Unreachable(Unavailable):
    """No connection can be made to an address. Clients raise it, and controllers that call a worker back."""


class JournalDamaged(Unavailable):
    """The journal can't be read or written, and waiting doesn't help."""

    retry_after_s = None


class TakenOver(Unavailable):
    """Another controller has taken over: this one may not write any more."""


class TransferFailed(Unavailable):
    """A mover could not fetch a room from where it lies."""


class RingUnreachable(Unavailable):
    """An operation on the ring's memory failed or did not end in time: the peer or the connection is gone."""


class EngineAbsent(Unavailable):
    """The process that computes a worker's text encoders doesn't answer."""


class WorkerBroken(Unavailable):
    """The worker ends, because it fails every job or its process is broken."""


class NotFinite(TriptychError):
    """A stage made numbers that aren't finite, because of the model, this request or a faulty device."""


class AdapterMissing(TriptychError):
    """A worker lacks an adapter that a job uses, or has other files under its name; another may have it."""


class NoSuchMethod(TriptychError):
    """The server has no RPC of this name."""


class AlreadyExists(TriptychError):
    """The identity is already used for something else."""


class JobCancelled(TriptychError):
    """The job was cancelled while this ran."""


class DeadlinePassed(TriptychError, TimeoutError):
    """A deadline, or the bound of a wait, has passed."""


FAILURE_CHARS_MAX = 300
"""Longest text of a failure that workers send and job records keep: a sentence."""
SHOWN_CHARS_MAX = 120
"""Longest piece of a caller's value repeated in an error: enough to recognise it, too little to leak or flood."""


def public_text(error: BaseException) -> str:
    """An error for logs, spans and job records: without a caller's values and without other libraries' texts."""
    if isinstance(error, InvalidRequest):
        head = error.field.partition(".")[0].partition("[")[0]  # what follows may be the caller's own words
        return f"InvalidRequest: {head} can't be used; accepted: {error.accepted}"
    if isinstance(error, TriptychError | OSError) and not isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those before it: each was the cause of the next, or was being handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def system_text(error: OSError) -> str:
    """The system's error as a sentence that names the file."""
    name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else ""
    said = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(name)!r} can't be used: {said}" if name else said
