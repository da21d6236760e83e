"""The end of a worker's process as told by who started it: by instance id, immediately, and by nobody else."""

from __future__ import annotations

import pytest

from services.controller.fleet_service import FleetServicer
from tests.services.conftest import Bench, OpenBench
from tests.services.test_coming_back import register
from tests.services.test_tie import begin
from triptych.errors import InvalidRequest, NotAllowed
from triptych.security.identity import Identity, set_caller
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import ATTEMPT_KIND_WORKER_DIED, JOB_STATE_QUEUED, Job

HOW = "was ended by signal 9 (SIGKILL)"
DECODER = Identity("service:decoder", frozenset({"decoder"}))
ENCODER = Identity("service:encoder", frozenset({"encoder"}))


async def end(bench: Bench, instance_id: str, **fields: int) -> None:
    request = pb.UnregisterWorkerRequest(instance_id=instance_id, ended=HOW, **fields)
    await FleetServicer(bench.controller, "").UnregisterWorker(request, None)  # type: ignore[arg-type]


def check_died(job: Job, rank: int) -> None:
    expected = [(rank, f"rank {rank} {HOW}", ATTEMPT_KIND_WORKER_DIED)]
    assert [(a.rank, a.reason, a.kind) for a in job.attempts] == expected
    assert job.state == JOB_STATE_QUEUED


async def test_the_end_of_a_process_sends_its_job_back_with_the_reason(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER)).rank
        job, _claimed = await begin(bench, rank)
        await end(bench, "never registered")
        assert not (await bench.core.ledger.get(job.job_id)).attempts
        await end(bench, "e")
        check_died(await bench.core.ledger.get(job.job_id), rank)
        await end(bench, "e")  # again, because the answer was lost
        check_died(await bench.core.ledger.get(job.job_id), rank)
        assert (await register(bench, "e", ROLE_ENCODER)).rank != rank


async def test_a_controller_that_has_just_restarted_is_told_as_well(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER)).rank
        job, _claimed = await begin(bench, rank)
    async with open_bench() as bench:
        await bench.controller.holdings.recover()
        await end(bench, "e")
        check_died(await bench.core.ledger.get(job.job_id), rank)


async def test_who_may_tell(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = (await register(bench, "e", ROLE_ENCODER)).rank
        set_caller(DECODER)
        with pytest.raises(NotAllowed):
            await end(bench, "e")
        set_caller(ENCODER)
        for instance_id, fields in (("", {}), ("e", {"rank": rank})):
            with pytest.raises(InvalidRequest, match="one of the two"):
                await end(bench, instance_id, **fields)
        assert rank in bench.core.fleet.members
        await end(bench, "e")
        assert rank not in bench.core.fleet.members
