"""The actions of the simulated processes, written against the real programs, one operation at a time.

A script yields an operation and is sent its result, or yields IDLE to let others go on. It tells the ledger what it
believes: in the same step as the operation by which it came to believe it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from triptych import errors
from triptych.rings import protocol, recovery
from triptych.rings.layout import Geometry
from triptych.rings.program import Operation, Program

if TYPE_CHECKING:
    from tests.sim.world import World

GEOMETRY = Geometry(slot_count=3, payload_bytes_max=8)
"""Few slots, so that they are fought for, run out and are used again."""
PRODUCERS, CONSUMERS, MESSAGES_EACH = 3, 3, 2
ATTEMPTS_MAX = 3
RESPAWNS_MAX = 6
"""Consumers that may follow dead ones, so that a message that kills reaches its cap."""
IDLE = None

Step = Operation | None
Script = Generator[Step, Any, Any]


class Programs(NamedTuple):
    """The programs under test; a planted bug replaces one."""

    publish: Callable[..., Program[int]] = protocol.publish
    claim: Callable[..., Program[protocol.Claim | None]] = protocol.claim
    ack: Callable[..., Program[None]] = protocol.ack
    nack: Callable[..., Program[bool]] = protocol.nack
    reap: Callable[..., Program[recovery.Reaped]] = recovery.reap
    abandon: Callable[..., Program[recovery.Reaped]] = recovery.abandon
    is_fenced_first: bool = True


class Fate(NamedTuple):
    """When and how a process is struck."""

    step: int
    is_deadly: bool
    is_cut: bool = False
    """Its connection breaks: it lives on, and doesn't know whether the operation under way was performed."""


@dataclass
class Process:
    """One running script under one rank."""

    rank: int
    script: Script
    fate: Fate | None
    next_step: Step = IDLE
    performed_count: int = 0
    idle_since: int = -1
    is_over: bool = False
    is_past_fence: bool = False
    is_cut_off: bool = False
    wake_at: int | None = None
    is_struck_down: bool = False
    """Whether it is dead or was taken for dead. A process that is only cut off lives."""
    held: list[protocol.Claim] = field(default_factory=list)
    adopted: list[protocol.Claim] = field(default_factory=list)


def producer(world: World, process: Process) -> Script:
    """Publish a few messages, one in six for one consumer only."""
    try:
        for number in range(MESSAGES_EACH):
            message = b"p%dm%d" % (process.rank, number)
            target = PRODUCERS + 1 + world.choose(CONSUMERS) if world.choose(6) == 0 else 0
            yield from _publish(world, process, message, target)
    except errors.Fenced:
        return


def _publish(world: World, process: Process, message: bytes, target: int) -> Script:
    while not (yield from _publish_once(world, process, message, target)):
        yield IDLE


def _publish_once(world: World, process: Process, message: bytes, target: int) -> Generator[Step, Any, bool]:
    process.idle_since = world.version
    world.ledger.begun.add(message)
    try:
        yield from interleave(world.programs.publish(GEOMETRY, message, process.rank, target, world.choose))
    except errors.RingFull:
        return False
    except errors.LeaseLost:
        world.ledger.on_lease_lost(process.rank)
        return True
    except errors.RingUnreachable:  # it may be in the ring or not: publish again, by another name
        yield from _publish(world, process, message + b"'", target)
        return True
    world.ledger.on_published(message)
    return True


def consumer(world: World, process: Process) -> Script:
    """Claim, work, and ack or hand back, indefinitely."""
    try:
        while True:
            process.idle_since = world.version
            if process.adopted:
                claim = process.adopted.pop()
            else:
                claim = yield from _claim(world, process)
            if claim is None:
                yield IDLE
                continue
            process.held = [claim]
            yield from _work(world, process, claim)
            process.held = []
    except errors.LeaseLost:
        world.ledger.on_lease_lost(process.rank)
    except errors.Fenced:
        yield from _ack_late(world, process)


def _claim(world: World, process: Process) -> Generator[Step, Any, protocol.Claim | None]:
    try:
        return (yield from interleave(world.programs.claim(GEOMETRY, process.rank, world.choose)))
    except errors.RingUnreachable:  # what it may have leased, the controller has taken back
        return None


def _work(world: World, process: Process, claim: protocol.Claim) -> Script:
    """Hold a lease for a while, then end it. A poisonous message kills its holder."""
    if process.rank not in world.ledger.fenced:
        world.ledger.on_claimed(claim)
    if claim.payload == world.poison:
        process.fate = Fate(0, is_deadly=True)
    for _ in range(world.choose(4)):
        process.idle_since = -1
        yield IDLE
    is_nack = world.choose(6) == 0 and claim.held.attempt + 1 < ATTEMPTS_MAX
    end, on_ended = (
        (world.programs.nack, world.ledger.on_nacked) if is_nack else (world.programs.ack, world.ledger.on_acked)
    )
    try:
        yield from interleave(end(GEOMETRY, claim.held))
    except errors.RingUnreachable:
        world.ledger.on_let_go(process.rank, claim.payload)
        try:
            yield from interleave(end(GEOMETRY, claim.held))
        except errors.LeaseLost:
            if process.rank in world.ledger.fenced:
                raise
            if is_nack:
                return  # the first try succeeded, and others have it by now
    on_ended(claim.held, claim.payload)


def _ack_late(world: World, process: Process) -> Script:
    """Woken up after being fenced: try to end the old lease all the same."""
    process.is_past_fence = True
    for claim in process.held:
        try:
            yield from interleave(world.programs.ack(GEOMETRY, claim.held))
        except errors.LeaseLost:
            world.ledger.on_lease_lost(process.rank)
        else:
            world.ledger.on_acked(claim.held, claim.payload)


def controller(world: World, process: Process) -> Script:
    """Fence suspects, then reap them, and start consumers for those that died."""
    if world.seed % 5 == 0:
        yield from _adopt(world, PRODUCERS + 1)
    while True:
        process.idle_since = -1
        yield IDLE
        if world.cut_off:
            yield from _reconnect(world, world.cut_off.pop(world.choose(len(world.cut_off))))
        if world.suspects:
            suspect = world.suspects.pop(world.choose(len(world.suspects)))
            yield from _reap(world, suspect)
            if suspect > PRODUCERS and world.respawn_count < RESPAWNS_MAX:
                world.respawn_count += 1
                world.start(PRODUCERS + CONSUMERS + world.respawn_count, consumer)


def _adopt(world: World, rank: int) -> Script:
    """As after a restart: a consumer is already working on something."""
    message = b"adopted"
    world.ledger.begun.add(message)
    try:
        held = yield from interleave(protocol.adopt(GEOMETRY, message, rank, 0, world.choose))
    except errors.RingFull:
        return
    world.ledger.on_published(message)
    world.processes[rank].adopted.append(protocol.Claim(held, message))


def _reconnect(world: World, process: Process) -> Script:
    """Tear the old connection down, undo what it left half done, and let the process go on."""
    kept = [claim.held for claim in (*process.held, *process.adopted)]
    abandoned = yield from interleave(world.programs.abandon(GEOMETRY, process.rank, kept))
    world.ledger.on_reaped(abandoned)
    process.is_cut_off, process.idle_since = False, -1  # it looks again


def _reap(world: World, rank: int) -> Script:
    world.ledger.on_fenced(rank)
    reaped = yield from interleave(world.programs.reap(GEOMETRY, rank, ATTEMPTS_MAX))
    world.ledger.on_reaped(reaped)


def interleave(program: Program[Any]) -> Generator[Step, Any, Any]:
    """Yield a program's operations one by one, out of their chains."""
    try:
        chain = next(program)
        while True:
            results = []
            for operation in chain:
                results.append((yield operation))
            chain = program.send(tuple(results))
    except StopIteration as stop:
        return stop.value
