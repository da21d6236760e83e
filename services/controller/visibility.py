"""Which jobs a caller sees and changes: its own, or all of them for an administrator. The one place that says so.

Journals from before names had kinds hold jobs of `alice`, those of open fleets jobs of nobody. Whether a certificate
or a token was alice then, nobody knows now, so they are nobody's: administrators see, download, cancel and retry them.
"""

from __future__ import annotations

from triptych.errors import InvalidRequest, NotFound
from triptych.security.identity import ANYONE, CLIENT_NAME, SCOPE_ADMIN, Identity, caller
from triptych.v1.job_pb2 import Job
from triptych.v1.worker_pb2 import Worker

from .ledger import Ledger


def check_client(name: str, encoder: Identity) -> None:
    """Check the client that an encoder names for a direct job. Raises InvalidRequest for no client's name."""
    is_nobody = not name and encoder is ANYONE
    if not is_nobody and not CLIENT_NAME.fullmatch(name):
        raise InvalidRequest("client", name, "a client's name with its kind, cert:NAME or token:NAME")


def visible_client() -> str | None:
    """The client whose jobs the caller may see; None for all."""
    return None if caller().may(SCOPE_ADMIN) else caller().name


def visible_worker(ledger: Ledger, worker: Worker) -> Worker:
    """A worker without the job that it runs, where that is somebody else's."""
    owner = visible_client()
    entry = ledger.active.get(worker.status.progress.job_id)
    if owner is not None and (entry is None or entry.job.client != owner):
        worker.status.ClearField("progress")
    return worker


async def visible_job(ledger: Ledger, job_id: str) -> Job:
    """A job as it stands now. Raises NotFound, in the same words for one that isn't there and for somebody else's."""
    job = await ledger.get(job_id)
    owner = visible_client()
    if owner is not None and job.client != owner:
        raise NotFound(f"there is no job {job_id!r}")
    return job
