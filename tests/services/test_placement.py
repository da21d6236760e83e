"""Which worker a phase is meant for: by memory, by what it has failed, by how busy it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.controller.placement import Candidate, choose
from tests.messages import heartbeat, registration
from tests.services.conftest import OpenBench
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import ATTEMPT_KIND_OUT_OF_MEMORY, ATTEMPT_KIND_STAGE_ERROR, Attempt, AttemptKind, Job
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.worker_pb2 import WORKER_STATE_BUSY, WORKER_STATE_FULL, WORKER_STATE_IDLE

STATES = (WORKER_STATE_IDLE, WORKER_STATE_BUSY, WORKER_STATE_FULL)
RANKS = range(1, 6)


def entry(pixels: float = 0.0, *failed: tuple[int, AttemptKind.ValueType]) -> JournalEntry:
    """A job of a size that transformers of these ranks have failed."""
    attempts = [Attempt(role=ROLE_TRANSFORMER, rank=rank, kind=kind) for rank, kind in failed]
    return JournalEntry(job=Job(job_id="j", attempts=attempts), pixels=pixels)


def chosen(job: JournalEntry, *candidates: Candidate) -> int:
    return choose(job, ROLE_TRANSFORMER, candidates)


def idle(rank: int, pixels_failed_min: float = 0.0, *, is_quiet: bool = True) -> Candidate:
    return Candidate(rank, WORKER_STATE_IDLE, pixels_failed_min, is_quiet)


def test_a_job_is_not_given_to_a_worker_where_its_size_runs_out() -> None:
    assert chosen(entry(100), idle(1, 100), idle(2)) == 2
    assert chosen(entry(100), idle(1, 100), Candidate(2, WORKER_STATE_BUSY)) == 2, "also where it waits for that"
    assert chosen(entry(99), idle(1, 100), idle(2)) == 0
    assert chosen(entry(100), idle(1, 100), idle(2, 1000)) == 2


def test_nor_does_it_wait_where_nobody_else_is() -> None:
    assert chosen(entry(100), idle(1, 100)) == 0
    assert chosen(entry(100), idle(1, 100), idle(2, 50)) == 0
    assert chosen(entry(100, (1, ATTEMPT_KIND_OUT_OF_MEMORY)), idle(1, 100), idle(2, 50)) == 2, "the other way round"
    assert chosen(entry(100)) == 0


def test_a_job_of_unknown_size_fits_everywhere() -> None:
    assert chosen(entry(0), idle(1, 1), idle(2)) == 0


def test_after_a_shortage_a_quiet_place_comes_first() -> None:
    loud, quiet = idle(2, is_quiet=False), Candidate(3, WORKER_STATE_BUSY)
    assert chosen(entry(0, (1, ATTEMPT_KIND_OUT_OF_MEMORY)), idle(1), loud, quiet) == 3
    assert chosen(entry(0, (1, ATTEMPT_KIND_STAGE_ERROR)), idle(1), loud, quiet) == 2, "it matters to no other failure"
    assert chosen(entry(0, (1, ATTEMPT_KIND_OUT_OF_MEMORY)), idle(1), loud) == 2, "there is no quiet one"


JOBS = st.builds(
    entry,
    st.sampled_from([0.0, 1.0, 2.0]),
    *[st.tuples(st.sampled_from(RANKS), st.sampled_from([ATTEMPT_KIND_OUT_OF_MEMORY, ATTEMPT_KIND_STAGE_ERROR]))] * 2,
)
FLEETS = st.lists(
    st.builds(
        Candidate, st.sampled_from(RANKS), st.sampled_from(STATES), st.sampled_from([0.0, 1.0, 2.0]), st.booleans()
    ),
    unique_by=lambda one: one.rank,
)


@given(JOBS, FLEETS)
def test_whoever_is_chosen_is_there_and_nobody_is_better(job: JournalEntry, fleet: list[Candidate]) -> None:
    rank = choose(job, ROLE_TRANSFORMER, fleet)
    able = [one.rank for one in fleet if not one.pixels_failed_min or job.pixels < one.pixels_failed_min]
    failed = [attempt.rank for attempt in job.job.attempts]
    fresh = [one for one in able or [one.rank for one in fleet] if one not in failed]
    if rank:
        assert rank in [one.rank for one in fleet]
        assert not able or rank in able
        assert not fresh or rank in fresh
    else:  # anyone may claim it, so all must be equally good
        assert not able or len(able) == len(fleet)
        assert len({failed.count(one.rank) for one in fleet}) <= 1


async def test_members_that_share_a_busy_device_are_not_quiet(open_bench: OpenBench) -> None:
    """By what they tell: a device's identity when they register, what they do with each heartbeat."""
    async with open_bench() as bench:

        async def join(name: str, role: int, memory_id: str) -> int:
            request = registration(name, role, model=bench.model, memory_id=memory_id)
            return (await bench.controller.membership.register(request)).rank

        first, shared, alone = [
            await join(name, ROLE_TRANSFORMER, device) for name, device in (("t1", "a"), ("t2", "b"), ("t3", "c"))
        ]
        decoder = await join("d", ROLE_DECODER, "b")
        fleet = bench.core.fleet
        job = entry(0, (first, ATTEMPT_KIND_OUT_OF_MEMORY))
        bench.controller.membership.report(heartbeat(alone, state=WORKER_STATE_BUSY))
        bench.controller.membership.report(heartbeat(decoder, state=WORKER_STATE_BUSY))
        assert fleet.elsewhere(job, ROLE_TRANSFORMER) == alone, "its own work ends before it claims this"
        bench.controller.membership.report(heartbeat(decoder, state=WORKER_STATE_IDLE))
        assert fleet.elsewhere(job, ROLE_TRANSFORMER) == shared
        bench.controller.membership.report(heartbeat(shared, state=WORKER_STATE_IDLE, pixels_failed_min=10))
        job.pixels = 10
        assert fleet.elsewhere(job, ROLE_TRANSFORMER) == alone
