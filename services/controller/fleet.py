"""The workers that the controller knows, in memory.

A worker is *expected* when the journal names its rank but it hasn't (re)registered in this epoch, *alive* while
it reports, and gone otherwise. Expected workers time out exactly like silent ones, so a controller's restart
needs no special case.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from triptych.errors import FAILURE_CHARS_MAX, Fenced, NotAllowed
from triptych.roles import RING_OF, role_name
from triptych.security.identity import caller
from triptych.v1 import worker_pb2 as pb
from triptych.v1.dispatch_pb2 import ROLE_UNSPECIFIED, Role
from triptych.v1.fleet_service_pb2 import HeartbeatRequest, HeartbeatResponse, RegisterWorkerRequest
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease

from .orders import Orders, Registrations
from .placement import Candidate, choose


def check_role(role: Role.ValueType) -> None:
    """Raise NotAllowed unless the caller may speak for workers of a role."""
    name = role_name(role)
    if not caller().may(name):
        raise NotAllowed(f"{caller().name!r} may not speak for a worker of the role {name}")


@dataclass
class Member:
    """One worker: what it said of itself, when, and the orders that wait for it."""

    rank: int
    seen_s: float
    registration: RegisterWorkerRequest | None = None
    seen_time: Timestamp = field(default_factory=Timestamp)
    """The wall clock's time of `seen_s`, for people."""
    report: HeartbeatRequest = field(default_factory=HeartbeatRequest)
    report_count: int = 0
    orders: Orders = field(default_factory=Orders)
    registrations: Registrations = field(default_factory=Registrations)
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a registration is worked on: a worker's are taken one after the other."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when orders wait, or when its stream is to end."""
    stream: int = 0

    @property
    def status(self) -> pb.WorkerStatus:
        """How it is, as of its last report."""
        return self.report.status

    @property
    def state(self) -> pb.WorkerState.ValueType:
        """Its state as of its last report; idle before the first."""
        return self.status.state or pb.WORKER_STATE_IDLE

    @property
    def role(self) -> Role.ValueType:
        """Its role; unspecified while it is only expected."""
        return self.registration.info.role if self.registration else ROLE_UNSPECIFIED

    @property
    def address(self) -> str:
        """`host:port` of its services; empty while it is only expected."""
        return self.registration.info.address if self.registration else ""

    @property
    def memory_id(self) -> str:
        """Which memory it works in; empty where that isn't known."""
        return self.registration.info.memory_id if self.registration else ""

    @property
    def takes_work(self) -> bool:
        """Whether it claims, or will when it has space: it is neither leaving nor in quarantine."""
        return self.status.state not in (pb.WORKER_STATE_DRAINING, pb.WORKER_STATE_QUARANTINED)

    def saw(self, report: HeartbeatRequest) -> None:
        self.seen_s = asyncio.get_running_loop().time()
        self.report = report
        self.report_count += 1
        self.orders.acknowledged(report.orders_number)
        self.seen_time.GetCurrentTime()

    def open_stream(self) -> int:
        """Open a stream in the place of an older one, which wakes up, sees that, and ends. Returns its number."""
        self.end_stream()
        self.orders.stream_opened()
        return self.stream

    def end_stream(self) -> None:
        """Have the worker register again."""
        self.stream += 1
        self.changed.set()

    def take_orders(self) -> HeartbeatResponse:
        """The orders that are due on the present stream."""
        self.changed.clear()
        return self.orders.take()

    def knows(self, lease: Lease) -> bool:
        """Whether the last report names a lease; True for a worker that doesn't say what it holds."""
        return not self.report.registration_number or lease in self.report.held_leases

    def describe(self) -> pb.Worker:
        """The worker for people."""
        info = self.registration.info if self.registration else None
        worker = pb.Worker(rank=self.rank, info=info, status=self.status, heartbeat_time=self.seen_time)
        worker.status.state = self.state
        worker.status.waiting_for = self.status.waiting_for[:FAILURE_CHARS_MAX]
        return worker


class Fleet:
    """All members by rank."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}

    def expect(self, rank: int) -> Member:
        """The member with a rank; one that is new has the usual time to come back and register."""
        return self.members.setdefault(rank, Member(rank, asyncio.get_running_loop().time()))

    def register(self, rank: int, request: RegisterWorkerRequest) -> Member:
        """Make a worker alive, keeping its orders. Raises Fenced for a registration older than the last."""
        member = self.expect(rank)
        if not member.registrations.take(request.number):
            raise Fenced(f"rank {rank} has registered again since registration {request.number}")
        member.registration = request
        member.seen_s = asyncio.get_running_loop().time()
        member.seen_time.GetCurrentTime()
        member.end_stream()  # orders must not go to the old one any more
        return member

    def get(self, rank: int) -> Member:
        """The registered member. Raises Fenced when the rank is unknown, evicted or only expected."""
        member = self.members.get(rank)
        if member is None or member.registration is None:
            raise Fenced(f"rank {rank} is not registered in this epoch; register again")
        return member

    def check(self, rank: int, role: Role.ValueType = ROLE_UNSPECIFIED) -> Member:
        """The registered member, if the caller may speak for its role and `role` (if given) is its own.

        Raises Fenced unless the rank is registered, NotAllowed for a caller or a phase of another role.
        """
        member = self.get(rank)
        if role not in (ROLE_UNSPECIFIED, member.role):
            raise NotAllowed(f"rank {rank} is of the role {role_name(member.role)}, not {role_name(role)}")
        check_role(member.role)
        return member

    def target_of(self, rank: int) -> int:
        """The only rank that may claim what is addressed to `rank`; 0, anyone, where that is gone or claims nothing."""
        member = self.members.get(rank)
        return rank if member is not None and member.takes_work else 0

    def registered(self) -> list[Member]:
        """Members that have registered in this epoch."""
        return [member for member in self.members.values() if member.registration is not None]

    def expected_count(self, timeout_s: float) -> int:
        """How many members may still come back: they haven't registered in this epoch, nor run out of the timeout."""
        now_s = asyncio.get_running_loop().time()
        return sum(m.registration is None and now_s - m.seen_s <= timeout_s for m in self.members.values())

    def counts(self) -> Counter[tuple[str, pb.WorkerState.ValueType]]:
        """How many registered members there are by role and state. Metrics call it from another thread."""
        members = [member for member in list(self.members.values()) if member.registration is not None]
        return Counter((role_name(member.role), member.state) for member in members)

    def alive(self, role: Role.ValueType) -> list[Member]:
        """Registered members of a role."""
        return [member for member in self.registered() if member.role == role]

    def elsewhere(self, entry: JournalEntry, role: Role.ValueType) -> int:
        """The rank that should run a role of the job, as `placement.choose` finds; 0 for anyone."""
        busy = Counter(m.memory_id for m in self.registered() if m.status.state == pb.WORKER_STATE_BUSY)
        candidates = []
        for member in self.alive(role):
            if member.takes_work:
                status, memory_id = member.status, member.memory_id
                others = busy[memory_id] - (status.state == pb.WORKER_STATE_BUSY)
                is_quiet = not memory_id or not others
                candidates.append(Candidate(member.rank, status.state, status.pixels_failed_min, is_quiet))
        return choose(entry, role, candidates)

    def remove(self, rank: int) -> Member | None:
        """Forget a member; its waiting streams are woken and then find themselves fenced."""
        member = self.members.pop(rank, None)
        if member is not None:
            member.changed.set()
        return member

    def excuse(self, seconds: float) -> None:
        """Count this time as nobody's silence: the controller could hear nobody in it."""
        now_s = asyncio.get_running_loop().time()
        for member in self.members.values():
            member.seen_s = min(member.seen_s + seconds, now_s)

    def silent(self, timeout_s: float) -> list[int]:
        """Ranks that have said nothing for longer than the timeout."""
        now_s = asyncio.get_running_loop().time()
        return [m.rank for m in self.members.values() if now_s - m.seen_s > timeout_s]

    def hint(self, role: Role.ValueType) -> None:
        """Tell the role's workers that claim over RDMA, and so can't be woken by their ring, to look at it."""
        for member in self.alive(role):
            if member.status.rings.name == "verbs":
                member.orders.hint(RING_OF[role])
                member.changed.set()

    def cancel(self, rank: int, job_id: str) -> None:
        if member := self.members.get(rank):
            member.orders.cancel(job_id)
            member.changed.set()

    def release(self, rank: int, room_id: int) -> None:
        if member := self.members.get(rank):
            member.orders.release(room_id)
            member.changed.set()
