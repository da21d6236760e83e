"""What a worker is given to begin with."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.protobuf.struct_pb2 import Struct

from tests.messages import token_for
from tests.services.conftest import OpenBench
from tests.services.test_attempts import complete, register, take
from triptych.errors import InvalidRequest
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.v1.dispatch_pb2 import RING_REQUEST, ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.fleet_service_pb2 import PhaseToken, StartPhaseRequest
from triptych.v1.job_pb2 import JOB_STATE_ENCODING, GenerationRequest, TokensCut
from triptych.v1.model_pb2 import INPUT_KIND_TEXT
from triptych.v1.ring_service_pb2 import Lease
from triptych_client.job_states import cut_sentences
from triptych_client.request import build_request


async def test_a_deadline_that_passes_at_the_encoder_is_no_fault_of_the_request(open_bench: OpenBench) -> None:
    """The encoder is told of the deadline and doesn't look at it: the controller's clock decides alone."""
    async with open_bench() as bench:
        rank = await bench.encoder()
        deadline_time = build_request("", deadline=timedelta(hours=1)).deadline_time
        job = await bench.create(deadline_time=deadline_time)
        lease = Lease(ring=RING_REQUEST, slot=0, ticket=1, rank=rank)
        token = PhaseToken(job_id=job.job_id, role=ROLE_ENCODER, generation=job.generation, lease=lease)
        request = (await bench.controller.phases.start(StartPhaseRequest(token=token))).request
        assert request == GenerationRequest(prompt="a circle", seed=job.seed, deadline_time=deadline_time)
        request.deadline_time.FromSeconds(1)
        assert resolve(request, bench.model).seed == job.seed
        assert (await bench.core.ledger.get(job.job_id)).state == JOB_STATE_ENCODING


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
            await bench.core.dispatcher.publish_waiting()
            claimed = await bench.rings[role].claim(ranks[role])
            assert claimed is not None
            started = await bench.controller.phases.start(StartPhaseRequest(token=token_for(claimed, role)))
            given[role] = started.request
            if role != ROLE_DECODER:
                await complete(bench, claimed, role, number)
        assert given[ROLE_ENCODER].parameters == parameters
        assert given[ROLE_TRANSFORMER] == GenerationRequest()
        assert given[ROLE_DECODER] == GenerationRequest(output_format="npy", frames_per_second=16)
        assert (await bench.core.ledger.journal.get_request(job.job_id)).seed == 3


async def test_what_tokenizers_cut_off_stands_in_the_job(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await bench.encoder()
        job = await bench.create()
        claimed = await take(bench, ROLE_ENCODER, rank)
        assert claimed is not None
        for named in ("a caller's words", "", "x" * 65):
            with pytest.raises(InvalidRequest, match="tokens_cut"):
                await complete(bench, claimed, ROLE_ENCODER, 1, [TokensCut(input=named, tokenizer="tokenizer")])
        cut = TokensCut(input="prompt", tokenizer="tokenizer_2", token_count=12)
        with pytest.raises(InvalidRequest, match="tokens_cut is '65 texts'; accepted: at most 64"):
            await complete(bench, claimed, ROLE_ENCODER, 1, [cut] * 65)
        await complete(bench, claimed, ROLE_ENCODER, 1, [cut])
        ended = await bench.core.ledger.get(job.job_id)
        assert list(ended.tokens_cut) == [cut]
        assert cut_sentences(ended) == ["prompt: tokenizer_2 cut off the last 12 tokens"]
