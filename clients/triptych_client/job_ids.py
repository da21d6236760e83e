"""Jobs by a beginning of their id that no other job has, as people copy them from a table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from triptych.errors import InvalidRequest, NotAllowed, NotFound
from triptych_client.client import AsyncClient

SHOWN_MAX = 5
"""Jobs named in a sentence about a beginning that several have."""

Result = TypeVar("Result")


async def with_job(client: AsyncClient, wanted: str, call: Callable[[str], Awaitable[Result]]) -> Result:
    """Make a call about a job by its id, or by a beginning of it.

    The id is tried as it is first, because a caller who may cancel may not be allowed to list. Raises InvalidRequest
    for an empty id and for a beginning of several, NotFound, and what the call raises.
    """
    if not wanted.strip():
        raise InvalidRequest("job", wanted, "a job's id, or a beginning of it that no other has")
    try:
        return await call(wanted)
    except NotFound as error:
        try:
            found = [job.job_id async for job in client.list_jobs(page_size=SHOWN_MAX + 1, job_id_prefix=wanted)]
        except NotAllowed:
            raise error from None
        if not found or found == [wanted]:  # where it is there, something else wasn't
            raise
        if len(found) > 1:
            shown = ", ".join(found[:SHOWN_MAX]) + (", …" if len(found) > SHOWN_MAX else "")
            raise InvalidRequest("job", wanted, f"more of the id: {shown} begin so") from None
    return await call(found[0])
