"""A decoder's completion: taken once, confirmed as often as it is asked for, refused where it is another's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.messages import token_for
from tests.services.conftest import Bench, OpenBench
from tests.services.test_attempts import complete, register, take
from triptych.errors import LeaseLost, ResultsMoved
from triptych.media import results
from triptych.rings.ring import Claimed
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import JOB_STATE_DECODING, JOB_STATE_SUCCEEDED


async def decoding(bench: Bench) -> Claimed:
    """A job that a decoder has begun."""
    ranks = [await register(bench, str(role), role) for role in (ROLE_ENCODER, ROLE_TRANSFORMER, ROLE_DECODER)]
    await bench.create()
    for role, rank in zip((ROLE_ENCODER, ROLE_TRANSFORMER), ranks, strict=False):
        claimed = await take(bench, role, rank)
        assert claimed is not None
        await complete(bench, claimed, role, 1)
    claimed = await take(bench, ROLE_DECODER, ranks[2])
    assert claimed is not None
    return claimed


def completion(bench: Bench, claimed: Claimed, **fields: Any) -> fleet_pb.CompletePhaseRequest:
    url = bench.core.result_url
    job_id = claimed.dispatch.job_id
    artifact = results.store(url, job_id, results.new_token(), "0.npy", "", b"data")
    fields = {"artifacts": [artifact], "result_url": url, "token": token_for(claimed, ROLE_DECODER), **fields}
    return fleet_pb.CompletePhaseRequest(**fields)


async def test_a_repeated_completion_is_confirmed_and_another_refused(open_bench: OpenBench) -> None:
    """The answer may have been lost: a worker that is refused removes what it stored."""
    async with open_bench() as bench:
        claimed = await decoding(bench)
        first = completion(bench, claimed)
        second = completion(bench, claimed)
        for _ in range(2):
            await bench.controller.phases.complete(first)
        with pytest.raises(LeaseLost):
            await bench.controller.phases.complete(second)
        job = await bench.core.ledger.get(claimed.dispatch.job_id)
        assert (job.state, list(job.artifacts)) == (JOB_STATE_SUCCEEDED, list(first.artifacts))


async def test_files_under_another_url_are_refused_and_the_job_goes_on(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        claimed = await decoding(bench)
        request = completion(bench, claimed, result_url="file:///elsewhere")
        with pytest.raises(ResultsMoved):
            await bench.controller.phases.complete(request)
        job = await bench.core.ledger.get(claimed.dispatch.job_id)
        assert job.state == JOB_STATE_DECODING
        await bench.controller.phases.complete(completion(bench, claimed))
