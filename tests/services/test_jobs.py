"""The life of a job: whatever happens in whatever order, the rules of `services.controller.jobs` hold."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.controller import jobs
from triptych.errors import LeaseLost, TriptychError, WrongState
from triptych.roles import RING_OF
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DENOISING,
    JOB_STATE_ENCODED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
    Attempt,
    Job,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

ATTEMPTS_MAX = 3


def queued() -> JournalEntry:
    return JournalEntry(job=Job(job_id="job-1", state=JOB_STATE_QUEUED))


def lease(ticket: int, attempt: int = 0, rank: int = 7, ring: int = 1) -> Lease:
    return Lease(ring=ring, slot=ticket % 128, ticket=ticket, attempt=attempt, rank=rank)


def encoded() -> JournalEntry:
    entry = jobs.start(queued(), ROLE_ENCODER, 0, lease(1))
    entry = jobs.complete(entry, ROLE_ENCODER, 0, lease(1))
    entry.phase1.room.room_id = 11
    entry.phase1.room.owner_rank = 7
    return entry


def test_the_first_completion_counts_and_no_other() -> None:
    entry = jobs.start(encoded(), ROLE_TRANSFORMER, 0, lease(5, rank=8))
    done = jobs.complete(entry, ROLE_TRANSFORMER, 0, lease(5, rank=8))
    with pytest.raises(LeaseLost):
        jobs.complete(done, ROLE_TRANSFORMER, 0, lease(5, rank=8))


def test_a_redelivered_dispatch_supersedes_the_stale_owner() -> None:
    entry = jobs.start(encoded(), ROLE_TRANSFORMER, 0, lease(5, rank=8))
    entry = jobs.start(entry, ROLE_TRANSFORMER, 0, lease(5, attempt=1, rank=9))
    with pytest.raises(LeaseLost):
        jobs.complete(entry, ROLE_TRANSFORMER, 0, lease(5, rank=8))
    assert jobs.complete(entry, ROLE_TRANSFORMER, 0, lease(5, attempt=1, rank=9)).job.transformer_rank == 9


def test_a_duplicate_publication_is_refused_while_the_first_runs() -> None:
    entry = jobs.start(encoded(), ROLE_TRANSFORMER, 0, lease(5, rank=8))
    with pytest.raises(LeaseLost):
        jobs.start(entry, ROLE_TRANSFORMER, 0, lease(6, rank=9))


def test_going_back_refuses_everything_of_the_older_generation() -> None:
    entry = jobs.start(encoded(), ROLE_TRANSFORMER, 0, lease(5, rank=8))
    back = jobs.go_back(entry, Attempt(reason="gone"), ATTEMPTS_MAX, lambda d: False)
    assert (back.job.state, back.job.generation) == (JOB_STATE_QUEUED, 1)
    assert not back.HasField("phase1")
    with pytest.raises(LeaseLost):
        jobs.complete(back, ROLE_TRANSFORMER, 0, lease(5, rank=8))


def test_a_lost_denoise_costs_no_encode_while_the_encoders_room_lives() -> None:
    entry = jobs.start(encoded(), ROLE_TRANSFORMER, 0, lease(5, rank=8))
    entry = jobs.complete(entry, ROLE_TRANSFORMER, 0, lease(5, rank=8))
    entry.phase2.room.room_id = 12
    entry.phase2.room.owner_rank = 8
    back = jobs.go_back(entry, Attempt(reason="gone"), ATTEMPTS_MAX, lambda d: d.room.owner_rank == 7)
    assert back.job.state == JOB_STATE_ENCODED
    assert jobs.dispatch_of(back).room.room_id == 11
    assert jobs.dispatch_of(back).generation == 1


def test_past_the_cap_a_job_fails_with_every_reason() -> None:
    entry = encoded()
    for number in range(ATTEMPTS_MAX):
        running = jobs.start(entry, ROLE_TRANSFORMER, entry.job.generation, lease(20 + number, rank=8))
        entry = jobs.retry(running, Attempt(reason=f"reason {number}"), ATTEMPTS_MAX)
    assert entry.job.state == JOB_STATE_FAILED
    assert [attempt.reason for attempt in entry.job.attempts] == ["reason 0", "reason 1", "reason 2"]
    assert "reason 2" in entry.job.error


class JobLife(RuleBasedStateMachine):
    """Random events; each either yields a new entry or raises and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = queued()
        self.ticket = 0
        self.completed: list[tuple[int, int]] = []

    def _try(self, change: jobs.Change) -> bool:
        before = self.entry.SerializeToString(deterministic=True)
        try:
            after = change(self.entry)
        except TriptychError:
            after = None
        assert self.entry.SerializeToString(deterministic=True) == before, "a transition changed its argument"
        if after is not None:
            assert not jobs.is_over(self.entry), "a terminal state was left"
            was = self.entry.job
            now = after.job
            assert any(
                was.state in line.sources and now.state in line.targets
                for line in jobs.TRANSITIONS.values()
                if now.generation == was.generation + line.generation_step
            )
            self.entry = after
        return after is not None

    @rule(role=st.sampled_from([ROLE_ENCODER, ROLE_TRANSFORMER, ROLE_DECODER]), stale=st.integers(0, 1))
    def start(self, role: int, stale: int) -> None:
        self.ticket += 1
        generation = max(0, self.entry.job.generation - stale)
        self._try(lambda e: jobs.start(e, role, generation, lease(self.ticket, ring=RING_OF[role])))

    @rule(newer=st.booleans())
    def redeliver(self, newer: bool) -> None:
        if not jobs.is_running(self.entry):
            return
        token = Lease()
        role = jobs.role_of(self.entry)
        token.CopyFrom(self.entry.lease)
        token.attempt += newer
        token.rank += 1
        assert self._try(lambda e: jobs.start(e, role, e.job.generation, token)) == newer

    @rule()
    def complete(self) -> None:
        if not jobs.is_running(self.entry):
            return
        role = jobs.role_of(self.entry)
        generation = self.entry.job.generation
        token = self.entry.lease

        def change(entry: JournalEntry) -> JournalEntry:
            after = jobs.complete(entry, role, generation, token)
            if role != ROLE_DECODER:
                after_dispatch = after.phase1 if role == ROLE_ENCODER else after.phase2
                after_dispatch.CopyFrom(Dispatch(job_id="job-1"))
                after_dispatch.room.room_id = 100 * generation + role
                after_dispatch.room.owner_rank = token.rank
            return after

        assert self._try(change)
        self.completed.append((generation, role))

    @rule(alive=st.booleans())
    def go_back(self, alive: bool) -> None:
        if not jobs.is_over(self.entry):
            self._try(lambda e: jobs.go_back(e, Attempt(reason="gone"), 50, lambda d: alive and d.HasField("room")))

    @rule()
    def lose_lease(self) -> None:
        if jobs.is_running(self.entry):
            self._try(lambda e: jobs.lose_lease(e, Attempt(reason="died"), 50))

    @rule()
    def cancel(self) -> None:
        over = jobs.is_over(self.entry)
        assert self._try(lambda e: jobs.give_up(e, JOB_STATE_CANCELLED, "")) != over

    @invariant()
    def a_lease_exactly_while_running(self) -> None:
        assert self.entry.HasField("lease") == jobs.is_running(self.entry)

    @invariant()
    def every_stage_is_completed_once_in_a_generation(self) -> None:
        assert len(set(self.completed)) == len(self.completed)

    @invariant()
    def a_waiting_job_has_the_room_that_it_waits_for(self) -> None:
        if jobs.is_over(self.entry):
            return
        role = jobs.role_of(self.entry)
        assert role == ROLE_ENCODER or jobs.dispatch_of(self.entry).HasField("room")


TestJobLife = JobLife.TestCase


def test_a_job_that_is_over_stays_over() -> None:
    over = jobs.give_up(queued(), JOB_STATE_CANCELLED, "")
    with pytest.raises(WrongState):
        jobs.give_up(over, JOB_STATE_FAILED, "too late")
    with pytest.raises(LeaseLost):
        jobs.start(over, ROLE_ENCODER, 0, lease(1))


def test_names() -> None:
    assert jobs.name(JOB_STATE_DENOISING) == "DENOISING"
    assert jobs.name(JOB_STATE_SUCCEEDED) == "SUCCEEDED"
