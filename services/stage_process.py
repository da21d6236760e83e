"""The process around a worker: what encoders, transformers and decoders have in common.

Start: serve (NOT_SERVING), load the stage, start Mooncake, register, say READY. SIGTERM: drain, release, leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import grpc

from services.worker_service import WorkerServicer
from triptych import process, rpc, telemetry
from triptych.config import WorkerConfig, load
from triptych.decoding.pool import Decoders
from triptych.errors import InvalidRequest, MissingExtra, ModelInvalid, WorkerBroken, WrongState
from triptych.link import CALL_TIMEOUT_S, Link
from triptych.phase import Equipment
from triptych.rings.access import RingAccess, try_card
from triptych.roles import NEXT, RING_OF, role_name
from triptych.stages import AnyStage
from triptych.transport import shared_memory
from triptych.transport.arena import Arena, sweep
from triptych.transport.fetcher import open_fetcher
from triptych.transport.mooncake_engine import MooncakeEngine, open_engine
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.worker_pb2 import DriverChoice
from triptych.worker import Worker

log = logging.getLogger(__name__)


class RoleServicer(Protocol):
    """A service that only one role has."""

    worker: Worker | None

    @property
    def service(self) -> rpc.Service:
        """For `rpc.start_server`."""


def run_stage_process(role: Role.ValueType, make_servicer: Callable[[str], RoleServicer] | None = None) -> None:
    """Run a worker of `role` until SIGTERM; `make_servicer(controller address)` makes the role's own service."""
    process.run(lambda: _main(role, make_servicer))


async def _main(role: Role.ValueType, make_servicer: Callable[[str], RoleServicer] | None) -> None:
    config = load(WorkerConfig, None)
    if not config.model and not config.fake_stage_seconds:
        raise InvalidRequest("model", "", "a folder or hub id of a diffusers pipeline")
    name = role_name(role)
    stop = process.stop_event()
    sweep()
    async with contextlib.AsyncExitStack() as stack:
        telemetry.setup_logging(name)
        seen = stack.enter_context(
            telemetry.setup(f"triptych-{name}", trace_file=config.trace_file, metrics_port=config.metrics_port)
        )
        process.show_holds(config, seen.metrics)
        security = process.open_security(config, config.token_file)
        open_channel = functools.partial(rpc.open_channel, security=security)
        arena = stack.enter_context(Arena.create(config.arena_bytes))
        if shortage := shared_memory.shortage(shared_memory.promised_bytes()):
            log.warning(shortage)
        servicers: list[RoleServicer] = [WorkerServicer(arena)]
        if make_servicer is not None:
            servicers.append(make_servicer(config.controller))
        server = await rpc.start_server(
            config.address,
            [s.service for s in servicers],
            serving=False,
            security=security,
            client_address=config.client_address,
        )
        stage, model = await asyncio.to_thread(_load_stage, role, config)
        host = config.advertise_host or config.address.rpartition(":")[0]
        engine, mooncake = stack.enter_context(_mooncake(config, arena, host))
        fetcher = open_fetcher(arena, engine, open_channel, forced=config.mover)
        stack.callback(fetcher.close)
        channel = await stack.enter_async_context(open_channel(config.controller))
        session, address = engine.session if engine else "", f"{host}:{server.port}"
        decoders = stack.enter_context(Decoders())
        equipment = Equipment(config, stage, model, arena, fetcher, session, mooncake, address, seen.metrics, decoders)
        worker = Worker(equipment)
        seen.metrics.watch_arena(lambda: arena.used_bytes, arena.size_bytes)
        seen.metrics.watch_device_memory(lambda: stage.device_memory_bytes)
        link = Link(channel, worker)
        worker.connect(link, await stack.enter_async_context(_rings(config, role, channel, worker, link)))
        for servicer in servicers:
            servicer.worker = worker
        await _serve(worker, link, server, stop, config.drain_timeout_s)


def _load_stage(role: Role.ValueType, config: WorkerConfig) -> tuple[AnyStage, ModelDescription]:
    if config.fake_stage_seconds:
        from triptych.stages.fake import FakeStage, fake_model

        return FakeStage(role, config.fake_stage_seconds, config.fake_model), fake_model(config.fake_model)
    from triptych.stages import Stage, Whole  # late: it imports torch

    whole = Whole.open(config.model, config.revision)
    digest = whole.config_digest()
    stage = Stage.load(whole, role, device=config.device, dtype=config.dtype, threads=config.threads or None)
    model = whole.describe()
    if model.config_digest != digest:
        raise ModelInvalid(f"{config.model!r} was changed while it was loaded; start again")
    return stage, model


@contextlib.contextmanager
def _mooncake(config: WorkerConfig, arena: Arena, host: str) -> Iterator[tuple[MooncakeEngine | None, DriverChoice]]:
    """Mooncake with the arena registered; None where another mover is forced, or where it can't be had."""
    if config.mover not in ("", "mooncake"):
        yield None, DriverChoice(reason=f"the mover {config.mover} is forced")  # it would only open ports
        return
    try:
        engine = open_engine(arena, host, config.mooncake, config.rdma_device)
    except (MissingExtra, WrongState) as error:
        if config.mover == "mooncake":
            raise
        log.warning("rooms go by the movers local and rpc only: %s", error)
        yield None, DriverChoice(reason=str(error))
        return
    with contextlib.closing(engine):
        yield engine, DriverChoice(name=engine.protocol, reason=engine.reason)


@contextlib.asynccontextmanager
async def _rings(
    config: WorkerConfig, role: Role.ValueType, channel: grpc.aio.Channel, worker: Worker, link: Link
) -> AsyncIterator[RingAccess]:
    """The rings that the role claims from and publishes to."""
    card, reason = try_card(config.rings, config.rdma_device)
    names = [RING_OF[one] for one in (role, NEXT.get(role)) if one is not None]
    access = RingAccess(
        channel,
        names,
        lambda: (link.rank, link.epoch),
        card=card,
        reason=reason,
        is_forced=config.rings == "verbs",
        adopted=worker.leases,
        on_change=link.changed,
    )
    try:
        yield access
    finally:
        await access.close()


async def _serve(worker: Worker, link: Link, server: rpc.Server, stop: asyncio.Event, drain_timeout_s: float) -> None:
    """Register, work until told to stop, drain, leave."""
    linked = asyncio.create_task(link.run())
    stopped = asyncio.create_task(stop.wait())
    ready = asyncio.create_task(link.wait_registered())
    draining: asyncio.Task[Any] = asyncio.create_task(worker.draining.wait())
    working = None
    try:
        await _first(linked, stopped, ready)
        if ready.done() and not stop.is_set():
            await server.set_serving(True)
            process.announce(worker.address, server.client_address)
            working = asyncio.create_task(worker.run())
            await _first(linked, stopped, draining, working)
            worker.draining.set()
            await asyncio.wait([working, linked], timeout=drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            worker.hand_back()
            await asyncio.wait([working, linked], timeout=CALL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                try:
                    await working  # raises what ended it, if that wasn't us
                except WorkerBroken as error:
                    log.error("this worker ends: %s", error)
                    await worker.drain()  # what it has made is whole, and others may need it
                    linked.cancel()
                    await link.leave(str(error))
                    raise
                await worker.drain()
            linked.cancel()
            await link.leave()
        if linked.done() and not linked.cancelled():
            await linked  # raises why the link gave up
    finally:
        for task in (linked, stopped, ready, draining):
            task.cancel()
        await server.stop()


async def _first(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
