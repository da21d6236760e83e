"""The process around a worker: what encoders, transformers and decoders have in common.

Start: serve (NOT_SERVING), load the stage, start Mooncake, register, say READY. SIGTERM: say NOT_SERVING, drain,
release, leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from triptych import ids, rpc, telemetry
from triptych.config import WorkerConfig, load
from triptych.errors import InvalidRequest, MissingExtra, ModelInvalid, WorkerBroken, WrongState, public_text
from triptych.means import options
from triptych.means.process import apply as before_torch
from triptych.media.decoding.pool import Decoders
from triptych.rings.access import RingAccess, try_card
from triptych.roles import NEXT, role_name
from triptych.security import auth
from triptych.stages import Place
from triptych.transport import shared_memory
from triptych.transport.arena import Arena
from triptych.transport.fetcher import open_fetcher
from triptych.transport.mooncake_engine import MooncakeEngine, open_engine
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.worker_pb2 import DriverChoice

from .. import process
from .equipment import Equipment
from .group import Loaded, open_group
from .link import CALL_TIMEOUT_S, Link, any_set
from .loop import Worker
from .membership import FleetMember
from .phase import Phases
from .servicers import WORKER_SERVICE, services_of
from .text_engines import TextEngine, open_text_encoder

log = logging.getLogger(__name__)


def run_stage_process(role: Role.ValueType) -> None:
    """Run a worker of `role` until SIGTERM."""
    process.run(lambda: _main(role))


async def _main(role: Role.ValueType) -> None:
    config = load_config(sys.argv[1:])
    name = role_name(role)
    stop = process.on_signals(config.lame_duck_s)
    shared_memory.sweep()
    async with contextlib.AsyncExitStack() as stack:
        telemetry.setup_logging(name)
        measured = stack.enter_context(telemetry.setup(f"triptych-{name}", config.trace_file, config.metrics_port))
        process.show_health(config, measured)
        metrics = telemetry.WorkerMetrics(role, measured.meter)
        security = process.open_security(config, config.token_file)
        arena = stack.enter_context(Arena(config.arena_bytes))
        if shortage := shared_memory.shortage(shared_memory.promised_bytes()):
            log.warning(shortage)
        loaded: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        services = services_of(role, arena, config.controller, loaded)
        server = await rpc.start_server(
            config.address,
            services,
            not_serving=[rpc.WHOLE, *(name for _add, _servicer, name in services)],
            security=security,
            client_address=config.client_address,
            metrics=measured,
        )
        stack.push_async_callback(server.stop, 0)  # or what a start that fails raises isn't the last that is said
        (stage, model), text_encoder = await _stage(stack, role, config, arena, security)
        engine, mooncake = stack.enter_context(_mooncake(config, arena))
        fetcher = open_fetcher(arena, engine, security, config.mover, config.room_bytes_per_s_min)
        stack.callback(fetcher.close)
        channel = await stack.enter_async_context(rpc.open_channel(config.controller, security))
        session = engine.session if engine else ""
        address = f"{config.host}:{server.port}"
        decoders = stack.enter_context(Decoders())
        equipment = Equipment(
            config,
            stage,
            model,
            arena,
            fetcher,
            session,
            mooncake,
            address,
            metrics,
            decoders,
            config.instance_id or ids.new_instance_id(),
            text_encoder,
        )
        metrics.watch_arena(lambda: arena.used_bytes, arena.size_bytes)
        metrics.watch_device_memory(lambda: stage.device_memory_bytes)
        metrics.watch_device(stage.device_uuid)
        link = Link(channel)
        card, reason = try_card(config.rings, config.rdma_device)
        roles = [role, NEXT[role]] if role in NEXT else [role]
        access = RingAccess(channel, roles, link, card=card, reason=reason, is_forced=config.rings == "verbs")
        stack.push_async_callback(access.close)
        worker = Worker(equipment, link, access, Phases(equipment, link, access), stop.now)
        loaded.set_result(worker)
        log.info("registering with the controller at %s", config.controller)
        await _serve(worker, server, stop.leaving)


def load_config(settings: Sequence[str]) -> WorkerConfig:
    """A worker's configuration by its flags; what it says of the process is done, so torch isn't imported yet."""
    config = load(WorkerConfig, settings)
    if not config.model and not config.fake_stage_seconds:
        raise InvalidRequest("model", "", "a folder or hub id of a diffusers pipeline")
    before_torch(options.of_json("means", config.means).process)
    return config


async def _stage(
    stack: contextlib.AsyncExitStack, role: Role.ValueType, config: WorkerConfig, arena: Arena, security: auth.Security
) -> tuple[Loaded, TextEngine | None]:
    """The role's stage and its model's description; an encoder's text encoders may be elsewhere, and a transformer may
    run in several processes."""
    text_encoder = await stack.enter_async_context(open_text_encoder(role, config, arena, security))

    def loaded(place: Place | None) -> Loaded:
        return load_stage(role, config, place, text_encoder)

    group = open_group(role, config, loaded, sys.argv[1:])
    return await asyncio.to_thread(stack.enter_context, group), text_encoder


def load_stage(
    role: Role.ValueType,
    config: WorkerConfig,
    place: Place | None = None,
    text_encoder: TextEngine | None = None,
) -> Loaded:
    """The stage and the model that the settings name, in the `place` that this process has among several."""
    if config.fake_stage_seconds:
        from triptych.stages.fake import FakeStage, fake_model

        return FakeStage(role, config.fake_stage_seconds, config.fake_model), fake_model(config.fake_model)
    log.info("importing torch and diffusers")
    from triptych.stages import warm_up  # late: these import torch
    from triptych.stages.adapters import Registry
    from triptych.stages.describe import describe
    from triptych.stages.device import open_device
    from triptych.stages.stage import Stage
    from triptych.stages.whole import Whole

    means = options.of_json("means", config.means)
    device = config.device_names[place.rank] if place else config.device
    open_device(device)  # before weights are read
    log.info("looking at the files of %s", config.model)
    whole = Whole.open(config.model, config.revision, config.variant, config.workflow_names)
    digest = whole.config_digest()
    registry = Registry.open(whole, config.adapters, config.adapter_ids)
    stage = Stage.load(
        whole,
        role,
        device=device,
        dtype=config.dtype,
        threads=config.threads or None,
        nonfinite=config.nonfinite,
        engine=text_encoder,
        means=means,
        adapters=registry.files,
        adapter_bytes_max=config.adapter_bytes_max,
    )
    model = describe(whole, registry.described)
    if model.config_digest != digest:
        raise ModelInvalid(f"{config.model!r} was changed while it was loaded; start again")
    if place is not None:
        stage.share(config.parallel, place)
    warm_up.run(whole, stage, model, means, config.dtype)
    return stage, model


@contextlib.contextmanager
def _mooncake(config: WorkerConfig, arena: Arena) -> Iterator[tuple[MooncakeEngine | None, DriverChoice]]:
    """Mooncake with the arena registered; None where another mover is forced, or where it can't be had."""
    if config.mover not in ("", "mooncake"):
        yield None, DriverChoice(reason=f"the mover {config.mover} is forced")  # it would only open ports
        return
    try:
        engine = open_engine(arena, config.host, config.mooncake, config.rdma_device)
    except (MissingExtra, WrongState) as error:
        if config.mover == "mooncake":
            raise
        log.warning("rooms go by the movers local and rpc only: %s", error)
        yield None, DriverChoice(reason=str(error))
        return
    with contextlib.closing(engine):
        yield engine, DriverChoice(name=engine.protocol, reason=engine.reason)


async def _serve(worker: Worker, server: rpc.Server, leaving: asyncio.Event) -> None:
    """Register, work until told to stop, drain, leave."""
    linked = asyncio.create_task(worker.link.run(FleetMember(worker)))
    ready = asyncio.create_task(any_set(worker.link.registered, worker.draining))
    telling = asyncio.create_task(_tell_health(worker, server, leaving))
    try:
        await _first(linked, ready)
        if ready.done() and not worker.draining.is_set():
            await server.set_serving(not leaving.is_set())  # before READY is said
            process.announce(worker.equipment.address, server.client_address)
            await _work(worker, linked)
        if linked.done() and not linked.cancelled():
            await linked  # raises why the link gave up
    finally:
        for task in (linked, ready, telling):
            task.cancel()
        await server.stop()


async def _work(worker: Worker, linked: asyncio.Task[None]) -> None:
    """Work until `draining` is set or the link gives up; finish, drain and leave. Raises what ended the work."""
    working = asyncio.create_task(worker.run())
    draining = asyncio.create_task(worker.draining.wait())
    await _first(linked, draining, working)
    draining.cancel()
    worker.draining.set()
    await _first(working, linked, timeout_s=worker.equipment.config.drain_timeout_s)
    worker.hand_back()
    await _first(working, linked, timeout_s=CALL_TIMEOUT_S)
    error = working.exception() if working.done() else None
    why = ""
    if error is not None:  # it ends this process, and the controller shouldn't have to wait for silence
        why = str(error) if isinstance(error, WorkerBroken) else public_text(error)
        log.error("this worker ends: %s", why)
    if working.done() and (error is None or isinstance(error, WorkerBroken)):
        await worker.drain()  # its rooms are whole, and others may need them
    linked.cancel()
    await worker.link.leave(why)
    if error is not None:
        raise error


async def _tell_health(worker: Worker, server: rpc.Server, leaving: asyncio.Event) -> None:
    """Keep `grpc.health.v1` true, until cancelled.

    The server as a whole and the services that take jobs are SERVING while work is accepted here, up to `leaving`.
    WorkerService goes on while a worker drains: others still fetch its rooms.
    """
    link = worker.link
    others = [name for name in server.names if name != WORKER_SERVICE]
    await link.registered.wait()
    while True:
        link.turned.clear()
        await server.set_serving(worker.takes_work and not leaving.is_set(), [rpc.WHOLE, *others])
        await server.set_serving(link.registered.is_set(), [WORKER_SERVICE])
        await any_set(link.turned, *(event for event in (leaving, worker.draining) if not event.is_set()))


async def _first(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
