"""`python -P -m services.controller`: the process that owns queues and jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from triptych import rpc, telemetry
from triptych.config import RESULTS_FOLDER, ControllerConfig, load
from triptych.externalscaler import externalscaler_pb2_grpc
from triptych.media import results
from triptych.security import auth
from triptych.v1 import (
    file_service_pb2_grpc,
    fleet_service_pb2_grpc,
    generation_service_pb2_grpc,
    ring_service_pb2_grpc,
)

from .. import process
from .autoscaling_service import AutoscalingServicer
from .call_back import CallBack
from .controller import Controller
from .core import Core
from .file_service import FileServicer
from .fleet import Fleet
from .fleet_service import FleetServicer
from .generation_service import GenerationServicer
from .journal import Journal
from .media_checks import MediaChecks
from .pruning import INTERVAL_S, SWEEP_PAUSE_S, Keep, Pruner, Sweeper
from .ring_service import RingServicer
from .rings import Rings, open_rings
from .served_model import ServedModel, stored_model
from .standby import Lease, stand_by
from .stored_files import StoredFiles
from .stores import store_of
from .upkeep import forever

GENERATION_SERVICE = "triptych.v1.GenerationService"
STOP_GRACE_S = 2.0
"""For calls that are under way when the process is told to stop."""
ACCEPTING = (rpc.WHOLE, GENERATION_SERVICE)
"""NOT_SERVING until the first worker has described the model."""


async def main() -> None:
    """Serve until SIGTERM."""
    config = load(ControllerConfig, None)
    # While this one leaves, no standby serves: its callers would find nobody.
    stop = process.on_signals(0.0 if config.lease_s else config.lame_duck_s)
    state = Path(config.state)
    telemetry.setup_logging("controller")
    with telemetry.setup("triptych-controller", config.trace_file, config.metrics_port) as measured:
        process.show_health(config, measured)
        async with Journal(store_of(config)) as journal:
            security = process.open_security(config)
            result_url = results.check_url("result_url", config.result_url or str(state / RESULTS_FOLDER))
            await asyncio.to_thread(results.check_store, "result_url", result_url)
            lease = Lease(journal, config.lease_s)
            active = await stand_by(config, lease, security, stop.now)
            if active is None:
                return
            epoch, config = active
            telemetry.identify(0, epoch)
            fleet = Fleet()
            async with lease.kept():
                # Given back before the lease, after which another may have the card.
                with contextlib.closing(open_rings(config, epoch, fleet.hint)) as rings:
                    core = Core(
                        config,
                        journal,
                        fleet,
                        rings,
                        await stored_model(journal),
                        epoch=epoch,
                        result_url=result_url,
                        metrics=telemetry.ControllerMetrics(measured.meter),
                    )
                    await _serve(core, rings, security, measured, stop, lease.check)


async def _serve(
    core: Core,
    rings: Rings,
    security: auth.Security,
    measured: telemetry.Metrics,
    stop: process.Stop,
    gate: Callable[[], None],
) -> None:
    """Take up what the journal holds, and serve until the process is told to stop."""
    config = core.config
    journal = core.ledger.journal
    sweeper = Sweeper(core.result_url)
    media = MediaChecks()
    controller = Controller(core, media, sweeper.ended, call_back=CallBack(journal, security))
    core.metrics.watch_rings(lambda: controller.upkeep.depths)
    core.metrics.watch_jobs(core.ledger.state_counts)
    core.metrics.watch_workers(core.fleet.counts)
    core.metrics.watch_journal(lambda: journal.full_count)
    await controller.holdings.recover()
    server = await rpc.start_server(
        config.address,
        _services(controller, rings),
        security=security,
        client_address=config.client_address,
        not_serving=() if core.model.known.is_set() else ACCEPTING,
        metrics=measured,
        gate=gate,
    )
    pruner = Pruner(journal, core.result_url, Keep(config.keep_days, config.keep_jobs, config.keep_bytes))
    if not config.lease_s:
        process.announce(server.address, server.client_address)
    work = _work(controller, pruner, sweeper, server, stop.leaving)
    # Media are closed, or a check would hold the stop up.
    await _until_end(journal, server, stop.now, work, media.close)


async def _until_end(
    journal: Journal,
    server: rpc.Server,
    stop: asyncio.Event,
    work: Coroutine[Any, Any, None],
    on_end: Callable[[], None],
) -> None:
    """Serve until the process is told to stop, or the lease ends. Raises what ends it otherwise."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        ends: list[asyncio.Future[Any]] = [stopping, working, journal.ended]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        on_end()
        await server.stop(STOP_GRACE_S if stop.is_set() else 0.0)  # what it could say now may be old
        stopping.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working  # raises what ended it, unless it was cancelled here
    if journal.ended.done():
        raise journal.ended.result()


async def _work(
    controller: Controller, pruner: Pruner, sweeper: Sweeper, server: rpc.Server, leaving: asyncio.Event
) -> None:
    """Do the background work. Ends only where a new start is the remedy."""
    metrics = controller.core.metrics
    async with asyncio.TaskGroup() as group:
        group.create_task(controller.upkeep.run())
        group.create_task(forever(metrics, "prune", pruner.once, INTERVAL_S))
        group.create_task(forever(metrics, "uploads", controller.core.uploads.prune, INTERVAL_S))
        group.create_task(forever(metrics, "sweep", sweeper.once, SWEEP_PAUSE_S))
        accepting = group.create_task(_accept(controller.core.model, server))
        group.create_task(_leave(server, leaving, accepting))


async def _accept(model: ServedModel, server: rpc.Server) -> None:
    """Say SERVING of what takes jobs once it does. A model that was known once stays so over restarts."""
    await model.known.wait()
    await server.set_serving(True, ACCEPTING)


async def _leave(server: rpc.Server, leaving: asyncio.Event, accepting: asyncio.Task[None]) -> None:
    """From `leaving` on, say NOT_SERVING for good, and serve as before. The process stays alive, and says so."""
    await leaving.wait()
    accepting.cancel()
    await asyncio.wait([accepting])
    await server.set_serving(False)


def _services(controller: Controller, rings: Rings) -> list[rpc.Service]:
    fleet = controller.core.fleet
    stored = StoredFiles(controller.core)
    return [
        (
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
            GenerationServicer(controller.core, controller.lifecycle, stored),
            GENERATION_SERVICE,
        ),
        (
            file_service_pb2_grpc.add_FileServiceServicer_to_server,
            FileServicer(stored, controller.core.uploads),
            "triptych.v1.FileService",
        ),
        (
            fleet_service_pb2_grpc.add_FleetServiceServicer_to_server,
            FleetServicer(controller, rings.reason),
            "triptych.v1.FleetService",
        ),
        (
            ring_service_pb2_grpc.add_RingServiceServicer_to_server,
            RingServicer(rings.by_role.values(), fleet.check, rings.host, rings.reason, fleet.target_of),
            "triptych.v1.RingService",
        ),
        (
            externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server,
            AutoscalingServicer(controller.core),
            "externalscaler.ExternalScaler",
        ),
    ]


if __name__ == "__main__":
    process.run(main)
