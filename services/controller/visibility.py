"""Whose jobs a caller sees and touches: its own, and an administrator everybody's. The one place that says so."""

from __future__ import annotations

from services.controller.ledger import Ledger
from triptych.errors import NotFound
from triptych.identity import SCOPE_ADMIN, Identity
from triptych.v1.job_pb2 import Job
from triptych.v1.worker_pb2 import Worker


def owner_filter(caller: Identity) -> str | None:
    """The client whose jobs the caller may list; None for all."""
    return None if caller.may(SCOPE_ADMIN) else caller.name


def visible_worker(ledger: Ledger, worker: Worker, caller: Identity) -> Worker:
    """A worker without the job that it runs, where that is somebody else's."""
    owner, entry = owner_filter(caller), ledger.active.get(worker.job_id)
    if owner is not None and (entry is None or entry.job.client != owner):
        for name in ("job_id", "step", "step_count"):
            worker.ClearField(name)
    return worker


async def visible_job(ledger: Ledger, job_id: str, caller: Identity) -> Job:
    """A job as it stands now. Raises NotFound, in the same words for one that isn't there and for somebody else's."""
    job = await ledger.get(job_id)
    owner = owner_filter(caller)
    if owner is not None and job.client != owner:
        raise NotFound(f"there is no job {job_id!r}")
    return job
