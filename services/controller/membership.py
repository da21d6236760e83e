"""Workers register, report with each heartbeat, and leave."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from triptych import addresses
from triptych.errors import FAILURE_CHARS_MAX, Fenced, InvalidRequest, NotAllowed
from triptych.roles import ROLES, role_name
from triptych.v1 import fleet_service_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_UNSPECIFIED, Role
from triptych.v1.job_pb2 import ATTEMPT_KIND_GIVEN_UP, ATTEMPT_KIND_WORKER_DIED, ATTEMPT_KIND_WORKER_SICK, AttemptKind

from .core import Core
from .evictions import Evictions
from .fleet import check_role
from .holdings import Holdings

log = logging.getLogger(__name__)

WORKER_TEXT_CHARS_MAX = 256
"""Longest instance id, address or host id: a UUID takes 36 characters, a host's name at most 253."""


class Membership:
    """Takes workers into the fleet and lets them go."""

    def __init__(
        self,
        core: Core,
        evictions: Evictions,
        holdings: Holdings,
        call_back: Callable[[pb.RegisterWorkerRequest], Awaitable[None]],
    ) -> None:
        self._core = core
        self._evictions = evictions
        self._holdings = holdings
        self._call_back = call_back

    async def register(self, request: pb.RegisterWorkerRequest) -> pb.RegisterWorkerResponse:
        """Make a worker known, settle what it holds, and give it (back) its rank and its job.

        The same again when a worker asks again because the answer was lost. Raises Fenced for what is older than a
        registration that was taken, JournalFull with half of it done; the worker's next try does the rest; what
        `CallBack` raises for a worker that can't be reached.
        """
        _check(request)
        await self._call_back(request)
        core = self._core
        async with core.model.registering:
            if await core.model.take(request):
                core.dispatcher.start_over()
            rank = await self._rank_of(request.instance_id)
            known = core.fleet.members.get(rank)
            if known is not None and known.role not in (ROLE_UNSPECIFIED, request.info.role):
                raise NotAllowed(f"instance_id names a worker of the role {role_name(known.role)}")
            member = core.fleet.register(rank, request)
        async with member.settling:
            lease = await self._holdings.settle_running(rank, request.running)
            release = await self._holdings.settle_rooms(rank, set(request.room_ids))
        if core.fleet.members.get(rank) is not member:
            raise Fenced(f"rank {rank} was declared dead while it registered; register again")
        log.info("registered %s at %s", Role.Name(request.info.role), request.info.address, extra={"rank": rank})
        core.dispatcher.work.set()
        response = pb.RegisterWorkerResponse(
            rank=rank, epoch=core.epoch, release_room_ids=release, result_url=core.result_url, adopted_lease=lease
        )
        response.heartbeat_interval.FromNanoseconds(int(core.config.heartbeat_interval_s * 1e9))
        response.worker_timeout.FromNanoseconds(int(core.config.worker_timeout_s * 1e9))
        return response

    async def _rank_of(self, instance_id: str) -> int:
        """The rank of a worker's process, never one that was evicted."""
        while True:
            await self._evictions.settle()
            rank = await self._core.ledger.journal.rank_of(instance_id)
            if rank not in self._evictions.ranks():  # it may have been evicted since
                return rank

    def report(self, report: pb.HeartbeatRequest) -> None:
        """A heartbeat. Raises Fenced when the rank isn't (or is no longer) a member, NotAllowed as `Fleet.check`."""
        core = self._core
        member = core.fleet.check(report.rank)
        if not member.registrations.is_last(report.registration_number):
            raise Fenced(f"rank {report.rank} has registered again since registration {report.registration_number}")
        member.saw(report)
        core.quarantine.saw(report.rank, report.status.state, report.status.waiting_for)
        for ring in core.rings.values():
            if ring.name in report.changed_rings:
                ring.hint()
        p = report.status.progress
        entry = core.ledger.active.get(p.job_id)
        if entry is not None and entry.job.generation == p.generation and entry.lease.rank == report.rank:
            core.ledger.take_progress(p.job_id, p.step, p.step_count, report.preview_png)

    async def unregister(self, request: pb.UnregisterWorkerRequest) -> None:
        """A worker is no more: it says so itself when it leaves, or its launcher does, which saw its process end.

        Nothing happens where its rank is evicted already. Raises InvalidRequest unless exactly one of `rank` and
        `instance_id` is set, NotAllowed for a caller of another role. A rank that is only expected has no role: there
        the instance id, which is random and shown to nobody, is the proof.
        """
        if bool(request.rank) == bool(request.instance_id):
            got = f"{request.rank} and {request.instance_id[:WORKER_TEXT_CHARS_MAX]!r}"
            raise InvalidRequest.from_message(f"rank, instance_id are {got}; accepted: one of the two")
        core = self._core
        rank = request.rank
        if request.instance_id:
            async with core.model.registering:  # one that registers just now is a member, or isn't there yet
                rank = await core.ledger.journal.known_rank(request.instance_id)
        member = core.fleet.members.get(rank)
        if member is None:
            return
        if member.registration is not None:
            core.fleet.check(rank)
        elif not request.instance_id:
            return
        reason, kind = _end(rank, request)
        await self._evictions.evict(rank, reason[:FAILURE_CHARS_MAX], kind)


def _check(request: pb.RegisterWorkerRequest) -> None:
    info = request.info
    if info.role not in ROLES:
        raise InvalidRequest("role", role_name(info.role), "ROLE_ENCODER, ROLE_TRANSFORMER or ROLE_DECODER")
    check_role(info.role)
    if not request.instance_id or not info.address:
        raise InvalidRequest("instance_id, address", "", "both, not empty")
    addresses.parse("address", info.address)
    if max(len(request.instance_id), len(info.address), len(info.host_id)) > WORKER_TEXT_CHARS_MAX:
        raise InvalidRequest(
            "instance_id, address, host_id", "a long text", f"up to {WORKER_TEXT_CHARS_MAX} characters"
        )
    if not request.model.config_digest:
        raise InvalidRequest("model.config_digest", "", "the digest of the model's configuration")


def _end(rank: int, request: pb.UnregisterWorkerRequest) -> tuple[str, AttemptKind.ValueType]:
    """Why a worker is no more, and what that is to the job that it ran."""
    if request.instance_id:
        return f"rank {rank} {request.ended or 'has ended'}", ATTEMPT_KIND_WORKER_DIED
    if request.broken:
        return f"rank {rank} is broken: {request.broken}", ATTEMPT_KIND_WORKER_SICK
    return f"rank {rank} left", ATTEMPT_KIND_GIVEN_UP
