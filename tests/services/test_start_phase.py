"""What a worker is given to begin with."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from services.controller.journal import Journal
from tests.services.tools import CLIENT, make_controller
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_ENCODER
from triptych.v1.fleet_service_pb2 import RegisterWorkerRequest, StartPhaseRequest
from triptych.v1.job_pb2 import JOB_STATE_ENCODING, GenerationRequest
from triptych.v1.ring_service_pb2 import Lease
from triptych_client.request import build_request

RANK = 1


async def test_a_deadline_that_passes_at_the_encoder_is_no_fault_of_the_request(tmp_path: Path) -> None:
    """The dispatch has the deadline. In the request the encoder would refuse it, and the job would be FAILED."""
    async with Journal(tmp_path) as journal:
        controller = make_controller(journal)
        controller.fleet.register(RANK, RegisterWorkerRequest(role=ROLE_ENCODER), 0.0)
        job = await controller.create("r-1", build_request("a cat", deadline=timedelta(hours=1)), CLIENT)
        lease = Lease(ring=RING_REQUEST, slot=0, ticket=1, rank=RANK)
        started = StartPhaseRequest(job_id=job.job_id, role=ROLE_ENCODER, generation=job.generation, lease=lease)
        request = await controller.start_phase(started)
        assert request == GenerationRequest(prompt="a cat", seed=job.seed)
        assert (await controller.ledger.get(job.job_id)).state == JOB_STATE_ENCODING
