"""`python -P -m services.controller`: the process that owns queues and jobs."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from services.controller.background import Background
from services.controller.controller import Controller
from services.controller.fleet_service import FleetServicer
from services.controller.generation_service import GenerationServicer
from services.controller.journal import Journal
from services.controller.ledger import Ledger
from services.controller.models import MODEL_KEY
from services.controller.pruning import INTERVAL_S, Keep, Pruner
from services.controller.ring_service import RingServicer
from services.controller.rings import Rings, open_rings
from services.controller.supervisor import Supervisor
from services.controller.sweeping import PAUSE_S, Sweeper
from triptych import process, results, rpc, telemetry
from triptych.config import ControllerConfig, load
from triptych.v1 import fleet_service_pb2_grpc, generation_service_pb2_grpc, ring_service_pb2_grpc
from triptych.v1.model_pb2 import ModelDescription


async def main() -> None:
    """Serve until SIGTERM."""
    config = load(ControllerConfig, None)
    stop = process.stop_event()
    state = Path(config.state)
    telemetry.setup_logging("controller")
    with telemetry.setup("triptych-controller", trace_file=config.trace_file, metrics_port=config.metrics_port) as seen:
        process.show_holds(config, seen.metrics)
        async with Journal(state) as journal:
            security = process.open_security(config)
            result_url = results.check_url("result_url", config.result_url or f"{state}/results")
            await asyncio.to_thread(results.check_store, "result_url", result_url)
            epoch = await journal.next_epoch()
            sweeper = Sweeper(result_url)
            controller, supervisor, rings = await _assemble(config, journal, epoch, result_url, seen.metrics, sweeper)
            seen.metrics.watch_rings(lambda: supervisor.depths)
            await supervisor.recover()
            server = await rpc.start_server(
                config.address,
                _services(controller, supervisor, rings, epoch),
                security=security,
                client_address=config.client_address,
            )
            pruner = Pruner(journal, result_url, Keep(config.keep_days, config.keep_jobs, config.keep_bytes))
            ticking = asyncio.create_task(_work(supervisor, pruner, sweeper, controller.background))
            process.announce(server.address, server.client_address)
            stopping = asyncio.create_task(stop.wait())
            ends: list[asyncio.Future[Any]] = [stopping, ticking, journal.damaged]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            controller.media.close()  # or a check would hold the stop up
            await server.stop()
            stopping.cancel()
            ticking.cancel()
            rings.close()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking  # raises what ended it, if that wasn't us
            if journal.damaged.done():
                raise journal.damaged.result()


async def _work(supervisor: Supervisor, pruner: Pruner, sweeper: Sweeper, background: Background) -> None:
    """What the controller does unasked; ends only where a new start is the remedy."""
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run())
        group.create_task(background.forever("prune", pruner.once, INTERVAL_S))
        group.create_task(background.forever("sweep", sweeper.once, PAUSE_S))


async def _assemble(
    config: ControllerConfig,
    journal: Journal,
    epoch: int,
    result_url: str,
    metrics: telemetry.Metrics,
    sweeper: Sweeper,
) -> tuple[Controller, Supervisor, Rings]:
    stored = await journal.get_meta(MODEL_KEY)
    model = ModelDescription.FromString(stored) if stored else None
    rings = open_rings(config, epoch, lambda r: supervisor.removed(r), lambda name: controller.fleet.hint(name))
    controller = Controller(config, Ledger(journal), rings.by_name, model, metrics, sweeper.ended)
    supervisor = Supervisor(controller, epoch, result_url)
    return controller, supervisor, rings


def _services(controller: Controller, supervisor: Supervisor, rings: Rings, epoch: int) -> list[rpc.Service]:
    return [
        (
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
            GenerationServicer(controller, supervisor.result_url),
            "triptych.v1.GenerationService",
        ),
        (
            fleet_service_pb2_grpc.add_FleetServiceServicer_to_server,
            FleetServicer(controller, supervisor, epoch, rings.reason),
            "triptych.v1.FleetService",
        ),
        (
            ring_service_pb2_grpc.add_RingServiceServicer_to_server,
            RingServicer(
                rings.by_name,
                controller.fleet.check,
                rings.host,
                rings.reason,
                controller.fleet.target_of,
            ),
            "triptych.v1.RingService",
        ),
    ]


if __name__ == "__main__":
    process.run(main)
