"""What a worker is given to begin with."""

from __future__ import annotations

from datetime import timedelta

from tests.services.conftest import OpenBench
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_ENCODER
from triptych.v1.fleet_service_pb2 import StartPhaseRequest
from triptych.v1.job_pb2 import JOB_STATE_ENCODING, GenerationRequest
from triptych.v1.ring_service_pb2 import Lease
from triptych_client.request import build_request


async def test_a_deadline_that_passes_at_the_encoder_is_no_fault_of_the_request(open_bench: OpenBench) -> None:
    """The dispatch has the deadline. In the request the encoder would refuse it, and the job would be FAILED."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        deadline_time = build_request("", deadline=timedelta(hours=1)).deadline_time
        job = await bench.create(deadline_time=deadline_time)
        lease = Lease(ring=RING_REQUEST, slot=0, ticket=1, rank=rank)
        started = StartPhaseRequest(job_id=job.job_id, role=ROLE_ENCODER, generation=job.generation, lease=lease)
        request = await bench.controller.start_phase(started)
        assert request == GenerationRequest(prompt="a circle", seed=job.seed)
        assert (await bench.controller.ledger.get(job.job_id)).state == JOB_STATE_ENCODING
