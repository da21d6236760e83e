"""Ends the jobs of a model that the fleet doesn't serve, when an administrator says so."""

from __future__ import annotations

import asyncio
import logging

from services.controller.controller import Controller
from triptych.errors import InvalidRequest, WrongState
from triptych.models import DIGEST_CHARS, named
from triptych.v1.job_pb2 import JOB_STATE_CANCELLED

log = logging.getLogger(__name__)

BATCH_JOBS = 256
"""Ended at once: they share the journal's commits, and others' calls come between."""


async def discard(controller: Controller, prefix: str) -> int:
    """End the unfinished jobs of the model whose digest begins so; how many. None is left if it is called again.

    Raises InvalidRequest for too short a beginning or one of several, WrongState for the model that is served.
    """
    if len(prefix) < DIGEST_CHARS:
        raise InvalidRequest("model_digest", prefix, f"a model's digest, or its first {DIGEST_CHARS} digits or more")
    found = [(e.job.job_id, e.job.model, e.job.model_digest) for e in controller.ledger.active.values()]
    found = [one for one in found if one[2].startswith(prefix)]
    digests = {digest for _job_id, _model, digest in found}
    if len(digests) > 1:
        raise InvalidRequest("model_digest", prefix, "more digits: several models begin so")
    if digests == {controller.models.digest} and controller.fleet.members:
        raise WrongState(f"the fleet serves {named(found[0][1], found[0][2])}: cancel its jobs by their ids")
    for start in range(0, len(found), BATCH_JOBS):
        batch = found[start : start + BATCH_JOBS]
        await asyncio.gather(
            *(
                controller.give_up(
                    job_id, JOB_STATE_CANCELLED, f"discarded by the operator, with all of {named(model, digest)}"
                )
                for job_id, model, digest in batch
            )
        )
    log.warning("discarded %d jobs of the model with the digest %s", len(found), prefix)
    return len(found)
