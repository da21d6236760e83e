"""The same error again: what ends a job before its attempts are used up.

An error at one place (`triptych.places`) that comes a second time, from another worker or from the same one with the
same inputs, is the request's. What a worker did that turned out sick doesn't count, nor what has no place.
"""

from __future__ import annotations

import re

from services.controller.journal import Journal
from triptych import requests
from triptych.places import PLACE_CHARS_MAX
from triptych.roles import role_name
from triptych.v1.job_pb2 import ATTEMPT_KIND_STAGE_ERROR, Attempt, GenerationRequest, Job

FIELDS_MAX = 20
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
    role = role_name(attempt.role)
    return f"the {role} fails this request in the same way each time ({what}): it sets {fields}; change one of them"


async def fields(journal: Journal, job_id: str, attempt: Attempt) -> str:
    """What the request sets, where this attempt repeats an earlier one: only then it is read, for it may be large."""
    entry = await journal.get(job_id)
    if entry is None or not is_repeated(entry.job, attempt):
        return ""
    request = await journal.get_request(job_id)
    return fields_of(request) if request is not None else ""


def fields_of(request: GenerationRequest) -> str:
    """The fields that a request sets, and their values where these are no texts, in words."""
    values: dict[str, object] = dict(requests.field_values(request))
    if request.num_outputs:
        values["num_outputs"] = request.num_outputs
    for name, value in request.parameters.fields.items():
        kind = value.WhichOneof("kind")
        values[f"parameters.{name}"] = getattr(value, kind) if kind in ("number_value", "bool_value") else None
    values |= {f"media.{media.name}": None for media in request.media}
    shown = [_shown(name, value) for name, value in values.items()]
    shown.sort(key=lambda words: " " not in words)  # numbers are what is wrong most often
    more = len(shown) - FIELDS_MAX
    return ", ".join(shown[:FIELDS_MAX]) + (f" and {more} more" if more > 0 else "")


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{name} {str(value).lower()}"
    return f"{name} {value:g}" if isinstance(value, int | float) else name
