"""The same error again: what ends a job before its attempts are used up.

An error at one place (`services.worker.places`) that comes a second time, from another worker or from the same one
with the same inputs, is the request's. Failures of a sick worker don't count, nor errors without a place.
"""

from __future__ import annotations

import re

from triptych.errors import NotFinite
from triptych.model.fields import values_of
from triptych.roles import role_name
from triptych.v1.job_pb2 import ATTEMPT_KIND_STAGE_ERROR, Attempt, GenerationRequest, Job

from ..worker.places import PLACE_CHARS_MAX
from .ledger import Ledger

DIFFERENCES_SHOWN_MAX = 20
"""Fields that a sentence names."""
_PLACE = re.compile(r"[\w.<>]+ in [\w.<>-]+ #[0-9a-f]+")


def accepted_place(place: str) -> str:
    """A worker's word for a place, or nothing where it isn't one."""
    return place if len(place) <= PLACE_CHARS_MAX and _PLACE.fullmatch(place) else ""


def is_repeated(job: Job, attempt: Attempt) -> bool:
    """Whether the job has failed in this way before."""
    if attempt.kind != ATTEMPT_KIND_STAGE_ERROR or not attempt.place:
        return False
    return any((a.kind, a.role, a.place) == (attempt.kind, attempt.role, attempt.place) for a in job.attempts)


def verdict(job: Job, attempt: Attempt, fields: str) -> str:
    """Why the job isn't tried again after this attempt, or nothing."""
    if not is_repeated(job, attempt):
        return ""
    what = attempt.place.partition(" #")[0]
    if what.startswith(f"{NotFinite.__name__} "):
        what = attempt.reason.removeprefix(f"{NotFinite.__name__}: ")  # its place matters, and not the line of code
    role = role_name(attempt.role)
    return f"the {role} fails this request in the same way each time ({what}): it sets {fields}; change one of them"


async def fields(ledger: Ledger, job_id: str, attempt: Attempt) -> str:
    """The fields that the request sets, if this attempt repeats an earlier one: only then it is read."""
    entry = ledger.active.get(job_id)
    if entry is None or not is_repeated(entry.job, attempt):
        return ""
    request = await ledger.journal.get_request(job_id)
    return fields_of(request) if request is not None else ""


def fields_of(request: GenerationRequest) -> str:
    """The fields that a request sets, and their values where these are no texts, in words."""
    values: dict[str, object] = values_of(request)
    if request.num_outputs:
        values["num_outputs"] = request.num_outputs
    for name, value in request.parameters.fields.items():
        kind = value.WhichOneof("kind")
        values[f"parameters.{name}"] = getattr(value, kind) if kind in ("number_value", "bool_value") else None
    values |= {f"media.{media.name}": None for media in request.media}
    shown = [_shown(name, value) for name, value in values.items()]
    shown.sort(key=lambda words: " " not in words)  # numbers are wrong most often
    more = len(shown) - DIFFERENCES_SHOWN_MAX
    return ", ".join(shown[:DIFFERENCES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{name} {str(value).lower()}"
    return f"{name} {value:g}" if isinstance(value, int | float) else name
