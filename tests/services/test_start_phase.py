"""What a worker is given to begin with."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.struct_pb2 import Struct

from tests.services.conftest import OpenBench
from tests.services.test_attempts import common, complete, register
from triptych.roles import RING_OF, ROLES
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.fleet_service_pb2 import StartPhaseRequest
from triptych.v1.job_pb2 import JOB_STATE_ENCODING, GenerationRequest
from triptych.v1.model_pb2 import INPUT_KIND_TEXT
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


async def test_each_role_is_given_what_it_needs_of_a_request(open_bench: OpenBench) -> None:
    """Whatever is added to requests later goes to encoders only, until somebody says otherwise."""
    async with open_bench() as bench:
        for name in ("prompt_2", "negative_prompt"):
            bench.model.inputs.add(name=name, kind=INPUT_KIND_TEXT)
        ranks = {role: await register(bench, Role.Name(role), role) for role in ROLES}
        parameters = Struct()
        parameters.update({"prompt_2": "a canary"})
        job = await bench.create(
            prompt="a canary", negative_prompt="a canary", parameters=parameters, output_format="npy", seed=3
        )
        given = {}
        for number, role in enumerate(ROLES, 1):
            await bench.controller.dispatcher.publish_waiting()
            claimed = await bench.rings[RING_OF[role]].claim(ranks[role])
            assert claimed is not None
            given[role] = await bench.controller.start_phase(StartPhaseRequest(**common(claimed, role)))
            if role != ROLE_DECODER:
                await complete(bench, claimed, role, number)
        assert given[ROLE_ENCODER].parameters == parameters
        assert given[ROLE_TRANSFORMER] == GenerationRequest()
        assert given[ROLE_DECODER] == GenerationRequest(output_format="npy")
        assert (await bench.controller.ledger.journal.get_request(job.job_id)).seed == 3
