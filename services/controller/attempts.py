"""The attempts in a job's record: which of them count, and when a job isn't tried again. Pure, but for `attempt_of`.

A job ends before its attempts are used up where the same error comes again. An error at one place
(`services.worker.places`) that comes a second time, from another worker or from the same one with the same inputs, is
the request's. Failures of a sick worker don't count, nor errors without a place.
"""

from __future__ import annotations

import re

from triptych.errors import NotFinite
from triptych.media import tensor_files
from triptych.model.fields import values_of
from triptych.roles import role_name
from triptych.v1 import job_pb2 as pb
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.journal_pb2 import JournalEntry

from ..worker.places import PLACE_CHARS_MAX

COUNTED = frozenset(
    {
        pb.ATTEMPT_KIND_UNSPECIFIED,
        pb.ATTEMPT_KIND_STAGE_ERROR,
        pb.ATTEMPT_KIND_WORKER_DIED,
        pb.ATTEMPT_KIND_OUT_OF_MEMORY,
    }
)
"""Kinds that count against `attempts_max`: what failed while the job ran, and nothing that happened around it."""
UNCOUNTED_MAX = 100
"""Attempts of one job that may end for reasons around it. A fleet that loses a room, or leaves, a hundred times while
one job is under way is not going to finish it; and the record of so many takes some 30 KiB."""
OUT_OF_MEMORY_MAX = 2
"""Attempts of one role that may run out of memory: what was in the way of the first may be gone at the second, and a
job that is too large for both is too large."""
SICK_MAX = 8
"""Workers that may break under one job: each starts again for it, and it may be the job's inputs that break them."""
FIELDS_SHOWN_MAX = 20
"""Fields that a sentence names."""
_PLACE = re.compile(r"[\w.<>]+ in [\w.<>-]+ #[0-9a-f]+")


def attempt_of(role: Role.ValueType, rank: int, reason: str, kind: pb.AttemptKind.ValueType) -> pb.Attempt:
    """An attempt that ends now."""
    attempt = pb.Attempt(role=role, rank=rank, reason=reason, kind=kind)
    attempt.end_time.GetCurrentTime()
    return attempt


def counted(job: pb.Job) -> int:
    """How many attempts count against `attempts_max`."""
    return sum(attempt.kind in COUNTED for attempt in job.attempts)


def verdict(job: pb.Job, attempts_max: int) -> str:
    """Why the job isn't tried again after its last attempt; empty where it is."""
    count = counted(job)
    last = job.attempts[-1]
    if last.kind == pb.ATTEMPT_KIND_OUT_OF_MEMORY:
        ran_out = [attempt for attempt in job.attempts if (attempt.kind, attempt.role) == (last.kind, last.role)]
        if len(ran_out) >= OUT_OF_MEMORY_MAX:
            return f"{role_name(last.role)}s ran out of memory in {len(ran_out)} attempts; the last: {last.reason}"
    if count >= attempts_max:
        return f"gave up after {count} attempts; the last: {_reasons(job, *COUNTED)[-1]}"
    sick = _reasons(job, pb.ATTEMPT_KIND_WORKER_SICK)
    if len(sick) >= SICK_MAX:
        return f"gave up after {SICK_MAX} attempts by workers that broke; the last: {sick[-1]}"
    if len(job.attempts) - count >= UNCOUNTED_MAX:
        return f"gave up after {UNCOUNTED_MAX} interruptions; the last: {last.reason}"
    return ""


def absolve(entry: JournalEntry, rank: int, *, is_sick: bool) -> JournalEntry:
    """The entry with a broken worker's failures no longer counted, or counted again where it isn't `is_sick`."""
    failed = (pb.ATTEMPT_KIND_STAGE_ERROR, pb.ATTEMPT_KIND_OUT_OF_MEMORY)
    sources = failed if is_sick else (pb.ATTEMPT_KIND_WORKER_SICK,)
    after = JournalEntry()
    after.CopyFrom(entry)
    for attempt in after.job.attempts:
        if attempt.rank == rank and attempt.kind in sources:
            attempt.kind = pb.ATTEMPT_KIND_WORKER_SICK if is_sick else _before(attempt)
    return after if after != entry else entry


def _before(attempt: pb.Attempt) -> pb.AttemptKind.ValueType:
    """What an attempt was before its worker was thought to be broken: only where memory ran out, bytes are known."""
    if attempt.needed_bytes or attempt.available_bytes:
        return pb.ATTEMPT_KIND_OUT_OF_MEMORY
    return pb.ATTEMPT_KIND_STAGE_ERROR


def _reasons(job: pb.Job, *kinds: pb.AttemptKind.ValueType) -> list[str]:
    return [attempt.reason for attempt in job.attempts if attempt.kind in kinds]


def accepted_place(place: str) -> str:
    """A worker's word for a place, or nothing where it isn't one."""
    return place if len(place) <= PLACE_CHARS_MAX and _PLACE.fullmatch(place) else ""


def is_repeated(job: pb.Job, attempt: pb.Attempt) -> bool:
    """Whether the job has failed in this way before."""
    if attempt.kind != pb.ATTEMPT_KIND_STAGE_ERROR or not attempt.place:
        return False
    return any((a.kind, a.role, a.place) == (attempt.kind, attempt.role, attempt.place) for a in job.attempts)


def verdict_on_repeat(job: pb.Job, attempt: pb.Attempt, fields: str) -> str:
    """Why the job isn't tried again after this attempt, or nothing."""
    if not is_repeated(job, attempt):
        return ""
    what = attempt.place.partition(" #")[0]
    if what.startswith(f"{NotFinite.__name__} "):
        what = attempt.reason.removeprefix(f"{NotFinite.__name__}: ")  # its place matters, and not the line of code
    role = role_name(attempt.role)
    return f"the {role} fails this request in the same way each time ({what}): it sets {fields}; change one of them"


def fields_of(request: pb.GenerationRequest) -> str:
    """The fields that a request sets, in words: with numbers' values, and with tensors' dtypes and shapes."""
    values: dict[str, object] = values_of(request)
    if request.num_outputs:
        values["num_outputs"] = request.num_outputs
    for name, value in request.parameters.fields.items():
        kind = value.WhichOneof("kind")
        values[f"parameters.{name}"] = getattr(value, kind) if kind in ("number_value", "bool_value") else None
    tensors = []
    for name, tree in sorted(request.inputs.items()):
        one = tree.WhichOneof("kind")
        if one == "tensor":
            words = tensor_files.shown(tree.tensor.data, tree.tensor.tensor)
            tensors.append(f"inputs.{name} {words}".rstrip())
            continue
        values[f"inputs.{name}"] = getattr(tree, one) if one in ("int_value", "number_value", "bool_value") else None
    values |= {f"media.{media.name}": None for media in request.media}
    shown = [*tensors, *(_shown(name, value) for name, value in values.items())]
    shown.sort(key=lambda words: " " not in words)  # tensors and numbers are wrong most often
    more = len(shown) - FIELDS_SHOWN_MAX
    return ", ".join(shown[:FIELDS_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{name} {str(value).lower()}"
    return f"{name} {value:g}" if isinstance(value, int | float) else name
