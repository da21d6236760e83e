"""What workers and clients may not do to a controller, whatever they send and whenever they go away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from services.controller.fleet_service import FleetServicer
from services.controller.journal import Journal
from services.controller.ring_service import RingServicer
from tests.fleet.processes import eventually
from tests.messages import registration
from tests.services import conftest
from triptych.config import ControllerConfig
from triptych.errors import FAILURE_CHARS_MAX, Fenced, InvalidRequest, LeaseLost, NotAllowed, TriptychError
from triptych.media import results
from triptych.rings.layout import Kind
from triptych.rings.ring import DISPATCH_BYTES_MAX
from triptych.security.rules import SMALL_BYTES_MAX
from triptych.telemetry.loop_watch import HOLD_MAX_S
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1 import generation_service_pb2, ring_service_pb2
from triptych.v1.dispatch_pb2 import RING_PHASE1, RING_REQUEST, ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Dispatch
from triptych.v1.job_pb2 import (
    JOB_STATE_DECODING,
    JOB_STATE_ENCODING,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
    Artifact,
    GenerationRequest,
    Job,
    JobState,
)
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.ring_service_pb2 import Lease

UNKNOWN_ENUM = 77
NOBODY: Any = None
"""For the context of a call, which these servicers don't look at."""


class Bench(conftest.Bench):
    """With the services for workers."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        super().__init__(folder, journal, ControllerConfig())
        self.ledger = self.core.ledger
        self.fleet = FleetServicer(self.controller, "")
        self.generation = self.service
        fleet = self.core.fleet
        self.ring = RingServicer(self.rings.values(), fleet.check, target_of=fleet.target_of)

    async def member(self, role: int, name: str = "worker") -> int:
        """A registered worker's rank."""
        return (await self.fleet.RegisterWorker(self.registration(role, name), NOBODY)).rank

    def registration(self, role: int, name: str = "worker", **fields: Any) -> pb.RegisterWorkerRequest:
        """What a worker says of itself."""
        return registration(name, role, **{"model": self.model, **fields})

    async def running(self, state: JobState.ValueType, rank: int, job_id: str = "job-1") -> Lease:
        """A job that a worker runs, and the lease under which it does."""
        lease = Lease(ring=RING_REQUEST, slot=1, ticket=5, rank=rank)
        job = Job(job_id=job_id, request_id=job_id, state=state, model_digest=self.core.model.digest)
        entry = JournalEntry(job=job, lease=lease)
        await self.journal.add(entry, GenerationRequest(prompt="a"))
        self.ledger.add(entry)
        return lease


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Journal(tmp_path / "state") as journal:
        yield Bench(tmp_path, journal)


async def cut_off(call: Awaitable[Any], after: int) -> None:
    """Make a call whose caller goes away after so many turns of the event loop."""
    task = asyncio.ensure_future(call)
    for _ in range(after):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- callers that go away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(1, 6))
async def test_a_worker_that_leaves_is_fenced_although_its_call_is_cut_off(bench: Bench, after: int) -> None:
    rank = await bench.member(ROLE_ENCODER)
    await cut_off(bench.fleet.UnregisterWorker(pb.UnregisterWorkerRequest(rank=rank), NOBODY), after)
    await eventually(lambda: rank not in bench.core.fleet.members)
    with pytest.raises(Fenced):
        await bench.rings[ROLE_ENCODER].claim(rank)


@pytest.mark.parametrize("after", range(1, 6))
async def test_a_job_that_is_on_disk_is_queued_although_its_call_was_cut_off(bench: Bench, after: int) -> None:
    request = generation_service_pb2.CreateJobRequest(request_id="mine", request=GenerationRequest(prompt="a"))
    await cut_off(bench.generation.CreateJob(request, NOBODY), after)
    job = (await bench.generation.CreateJob(request, NOBODY)).job
    assert list(bench.ledger.active) == [job.job_id]
    await bench.member(ROLE_ENCODER)
    await bench.core.dispatcher.publish_waiting()
    waiting = [slot.dispatch.job_id for slot in bench.rings[ROLE_ENCODER].slots() if slot.dispatch is not None]
    assert waiting == [job.job_id]


@pytest.mark.parametrize("after", range(1, 6))
async def test_a_completion_is_whole_or_absent(bench: Bench, after: int) -> None:
    rank = await bench.member(ROLE_ENCODER)
    completion = completed(await bench.running(JOB_STATE_ENCODING, rank), ROLE_ENCODER)
    await cut_off(bench.fleet.CompletePhase(completion, NOBODY), after)
    await bench.fleet.CompletePhase(completion, NOBODY)
    stored = await bench.journal.get("job-1")
    assert stored == bench.ledger.active["job-1"]


@pytest.mark.parametrize("first", ["register", "evict"])
async def test_a_rank_that_is_evicted_while_it_registers_is_a_member_or_fenced(first: str, bench: Bench) -> None:
    """Both would be a worker that reports happily and can never claim."""
    rank = await bench.member(ROLE_ENCODER)
    registering = bench.member(ROLE_ENCODER)
    evicting = bench.controller.evictions.evict(rank, "silent")
    calls = (registering, evicting) if first == "register" else (evicting, registering)
    answers = await asyncio.gather(*calls)
    (new,) = [one for one in answers if one is not None]
    for one in {rank, new} & bench.core.fleet.members.keys():
        assert await bench.rings[ROLE_ENCODER].claim(one) is None, "and not Fenced"


# -- values that nobody honest sends ----------------------------------------------------------------------------------


async def test_unknown_numbers_of_enumerations_are_refused(bench: Bench) -> None:
    rank = await bench.member(ROLE_ENCODER)
    lease = await bench.running(JOB_STATE_ENCODING, rank)
    known = pb.PhaseToken(lease=lease, job_id="job-1", role=ROLE_ENCODER)
    unknown = pb.PhaseToken(lease=lease, job_id="job-1", role=UNKNOWN_ENUM)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="role is '77'"):
        await bench.fleet.RegisterWorker(bench.registration(UNKNOWN_ENUM, "other"), NOBODY)
    with pytest.raises(NotAllowed, match="not 77"):
        await bench.fleet.StartPhase(pb.StartPhaseRequest(token=unknown), NOBODY)
    with pytest.raises(NotAllowed, match="not 77"):
        await bench.fleet.CompletePhase(pb.CompletePhaseRequest(token=unknown), NOBODY)
    failure = pb.FailPhaseRequest(reason=UNKNOWN_ENUM, token=known)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="reason is 77"):
        await bench.fleet.FailPhase(failure, NOBODY)
    running = pb.RunningPhase(dispatch=Dispatch(job_id="job-1", role=UNKNOWN_ENUM), lease=lease)  # type: ignore[arg-type]
    answer = await bench.fleet.RegisterWorker(bench.registration(ROLE_ENCODER, running=running), NOBODY)
    assert not answer.HasField("adopted_lease")


@pytest.mark.parametrize(
    "fields", [{"address": "x" * 1000}, {"host_id": "x" * 1000}, {"model": ModelDescription()}], ids=str
)
async def test_registrations_that_no_worker_sends(fields: dict[str, Any], bench: Bench) -> None:
    with pytest.raises(InvalidRequest):
        await bench.fleet.RegisterWorker(bench.registration(ROLE_ENCODER, **fields), NOBODY)
    assert not bench.core.fleet.members


async def test_a_failure_is_a_sentence(bench: Bench) -> None:
    rank = await bench.member(ROLE_ENCODER)
    lease = await bench.running(JOB_STATE_ENCODING, rank)
    token = pb.PhaseToken(role=ROLE_ENCODER, lease=lease, job_id="job-1")
    failure = pb.FailPhaseRequest(token=token, message="x" * 1_000_000)
    await bench.fleet.FailPhase(failure, NOBODY)
    (attempt,) = (await bench.ledger.get("job-1")).attempts
    assert len(attempt.reason) == FAILURE_CHARS_MAX


async def test_ids_of_no_job_are_not_remembered(bench: Bench) -> None:
    rank = await bench.member(ROLE_ENCODER)
    for number in range(50):
        token = pb.PhaseToken(lease=Lease(rank=rank), job_id=f"made up {number}", role=ROLE_ENCODER)
        with pytest.raises(LeaseLost):
            await bench.fleet.StartPhase(pb.StartPhaseRequest(token=token), NOBODY)
    assert not bench.ledger._locks


async def test_any_number_of_states_may_be_listed(bench: Bench) -> None:
    request = generation_service_pb2.ListJobsRequest(states=[JOB_STATE_QUEUED] * SMALL_BYTES_MAX)
    began_s = time.thread_time()
    assert not (await bench.generation.ListJobs(request, NOBODY)).jobs
    assert time.thread_time() - began_s < HOLD_MAX_S


# -- completions ------------------------------------------------------------------------------------------------------


def completed(lease: Lease, role: int, **fields: Any) -> pb.CompletePhaseRequest:
    """A completion as an honest worker sends it, but for `fields` of its room."""
    token = pb.PhaseToken(lease=lease, job_id="job-1", role=role)  # type: ignore[arg-type]
    request = pb.CompletePhaseRequest(token=token)
    request.next.job_id = "job-1"
    room = {"room_id": 9, "size_bytes": 4096, "xxh3_128": bytes(16), "owner_rank": lease.rank}
    room.update({"owner_address": "127.0.0.1:1", **fields})
    for name, value in room.items():
        setattr(request.next.room, name, value)
    return request


@pytest.mark.parametrize(
    "fields",
    [
        {"size_bytes": 2**63},
        {"size_bytes": 0},
        {"offset_bytes": 2**63},
        {"offset_bytes": 1},
        {"xxh3_128": b"short"},
        {"room_id": 0},
        {"owner_rank": 12345},
        {"owner_address": "10.0.0.66:1"},
        {"arena": "x" * 4000},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_references_to_rooms_that_cannot_be(fields: dict[str, Any], bench: Bench) -> None:
    rank = await bench.member(ROLE_ENCODER)
    lease = await bench.running(JOB_STATE_ENCODING, rank)
    with pytest.raises(InvalidRequest, match=r"^(next|room)"):
        await bench.fleet.CompletePhase(completed(lease, ROLE_ENCODER, **fields), NOBODY)
    assert bench.ledger.active["job-1"].job.state == JOB_STATE_ENCODING


async def test_a_completion_cannot_dispatch_another_job(bench: Bench) -> None:
    rank = await bench.member(ROLE_ENCODER)
    request = completed(await bench.running(JOB_STATE_ENCODING, rank), ROLE_ENCODER)
    request.next.job_id = "job-2"
    with pytest.raises(InvalidRequest, match=r"next\.job_id"):
        await bench.fleet.CompletePhase(request, NOBODY)


async def test_the_longest_dispatch_that_is_taken_can_be_published(bench: Bench) -> None:
    """One that can't would end the controller when it comes to publish it."""
    rank = await bench.member(ROLE_ENCODER)
    request = completed(await bench.running(JOB_STATE_ENCODING, rank), ROLE_ENCODER)
    request.next.role = ROLE_TRANSFORMER
    request.next.decoder_rank = 2**32 - 1
    request.next.receiver_rank = 2**32 - 1
    request.next.model_digest = bench.core.model.digest
    request.next.room.arena = "x" * (DISPATCH_BYTES_MAX - request.next.ByteSize() - 4)
    assert request.next.ByteSize() == DISPATCH_BYTES_MAX
    await bench.fleet.CompletePhase(request, NOBODY)
    bench.core.dispatcher.enqueue(bench.ledger.active["job-1"])
    await bench.core.dispatcher.publish_waiting()
    ready = [slot for slot in bench.rings[ROLE_TRANSFORMER].slots() if slot.kind is Kind.READY]
    assert [slot.rank for slot in ready] == [0], "for anyone: no such rank lives"


@pytest.mark.parametrize("target", [12345, 2**28 - 1])
async def test_nothing_waits_for_a_rank_that_is_nobodys(target: int, bench: Bench) -> None:
    """Such an entry would keep its slot, and its job, indefinitely: no death of that rank will be noticed."""
    rank = await bench.member(ROLE_ENCODER)
    other = await bench.member(ROLE_TRANSFORMER, "other")
    dispatch = Dispatch(job_id="job-1", sender_rank=rank, receiver_rank=target)
    publish = ring_service_pb2.PublishRequest(rank=rank, ring=RING_PHASE1, dispatch=dispatch)
    await bench.ring.Publish(publish, NOBODY)
    claimed = await bench.rings[ROLE_TRANSFORMER].claim(other)
    assert claimed is not None
    assert claimed.dispatch.receiver_rank == 0


ELSEWHERE = [
    {"url": "file:///etc/passwd", "name": "passwd"},
    {"url": "file:///etc/passwd", "name": "0.npy"},
    {"url": "{results}/job-2/0.npy"},
    {"url": "{results}/job-1/../job-2/0.npy"},
    {"url": "{results}/job-1/../job-2/0.npy", "name": "../job-2/0.npy"},
    {"url": "{results}/job-1/sub/0.npy", "name": "sub/0.npy"},
    {"url": "{results}/job-1/.hidden", "name": ".hidden"},
    {"url": "{results}/job-1/..", "name": ".."},
    {"url": "{results}/job-1/", "name": ""},
    {"url": "{results}/job-1/a\0b", "name": "a\0b"},
    {"url": "simplecache::{results}/job-1/0.npy"},
    {"url": "memory://x/job-1/0.npy"},
    {"url": "http://127.0.0.1/job-1/0.npy"},
    {"url": ""},
    {"url": "job-2/{token}/0.npy"},
    {"url": "job-1/{token}/1.npy"},
    {"url": "job-1/../0.npy"},
    {"url": "job-1/{token}/../0.npy"},
    {"url": "job-1/0.npy"},
    {"url": "/job-1/{token}/0.npy"},
    {"url": "job-1/{token}0/0.npy"},
    {"sha256": b"short"},
]


@pytest.mark.parametrize("fields", ELSEWHERE, ids=str)
async def test_a_decoder_cannot_name_other_files_than_its_jobs(fields: dict[str, Any], bench: Bench) -> None:
    rank = await bench.member(ROLE_DECODER)
    lease = await bench.running(JOB_STATE_DECODING, rank)
    url = bench.core.result_url
    token = results.new_token()
    artifact = results.store(url, "job-1", token, "0.npy", "", b"data")
    for name, value in fields.items():
        setattr(artifact, name, value.format(results=url, token=token) if isinstance(value, str) else value)
    phase = pb.PhaseToken(lease=lease, job_id="job-1", role=ROLE_DECODER)
    request = pb.CompletePhaseRequest(token=phase, artifacts=[artifact], result_url=url)
    with pytest.raises(InvalidRequest, match="artifacts"):
        await bench.fleet.CompletePhase(request, NOBODY)
    assert bench.ledger.active["job-1"].job.state == JOB_STATE_DECODING


async def test_what_stands_in_a_journal_is_not_believed_either(bench: Bench, tmp_path: Path) -> None:
    """A journal may be older than the checks, and a link may be put where a file was."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = tmp_path / "results" / "job-2" / "0.npy"
    link.parent.mkdir()
    link.symlink_to(secret)
    (tmp_path / "results" / "job-3").symlink_to(tmp_path)
    token = results.new_token()
    deep = tmp_path / "results" / "job-4" / token
    deep.parent.mkdir()
    deep.symlink_to(tmp_path)
    for job_id, url in {
        "job-1": secret.as_uri(),
        "job-2": link.as_uri(),
        "job-3": (tmp_path / "results" / "job-3" / "secret").as_uri(),
        "job-4": f"job-4/{token}/secret",
        "job-5": f"job-5/../{secret.name}",
    }.items():
        artifact = Artifact(name=url.rpartition("/")[2], url=url, sha256=bytes(32))
        entry = JournalEntry(job=Job(job_id=job_id, request_id=job_id, state=JOB_STATE_SUCCEEDED, artifacts=[artifact]))
        await bench.journal.add(entry, GenerationRequest())
        request = generation_service_pb2.DownloadResultRequest(job_id=job_id)
        with pytest.raises(InvalidRequest, match=r"artifacts\.url"):
            _ = [piece async for piece in bench.generation.DownloadResult(request, NOBODY)]
        results.remove(bench.core.result_url, entry.job)
    assert secret.read_bytes() == b"secret"


async def test_job_ids_are_never_paths(bench: Bench, tmp_path: Path) -> None:
    for job_id in ("../../etc", "/etc", "..", "job-1/../x", "\0"):
        request = generation_service_pb2.DownloadResultRequest(job_id=job_id)
        with pytest.raises(TriptychError):
            _ = [piece async for piece in bench.generation.DownloadResult(request, NOBODY)]
        with pytest.raises(TriptychError):
            await bench.generation.CancelJob(generation_service_pb2.CancelJobRequest(job_id=job_id), NOBODY)
    assert sorted(os.listdir(tmp_path)) == ["results", "state"]
