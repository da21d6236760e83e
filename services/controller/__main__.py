"""`python -m services.controller`: the process that owns queues and jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from services.controller.controller import Controller
from services.controller.fleet_service import FleetServicer
from services.controller.generation_service import GenerationServicer
from services.controller.journal import Journal
from services.controller.ledger import Ledger
from services.controller.ring_service import RingServicer
from services.controller.supervisor import MODEL_KEY, Supervisor
from triptych import process, results, rpc, telemetry
from triptych.config import ControllerConfig, load
from triptych.rings.memory import MemoryRing
from triptych.roles import ring_name
from triptych.v1 import fleet_service_pb2_grpc, generation_service_pb2_grpc, ring_service_pb2_grpc
from triptych.v1.dispatch_pb2 import RING_PHASE1, RING_PHASE2, RING_REQUEST, Ring
from triptych.v1.model_pb2 import ModelDescription


async def main() -> None:
    """Serve until SIGTERM."""
    config = load(ControllerConfig, None)
    stop = process.stop_event()
    state = Path(config.state)
    telemetry.setup_logging("controller")
    with telemetry.setup("triptych-controller", trace_file=config.trace_file, metrics_port=config.metrics_port) as seen:
        async with Journal(state) as journal:
            result_url = results.check_url("result_url", config.result_url or f"{state}/results")
            epoch = await journal.next_epoch()
            controller, supervisor = await _assemble(config, journal, epoch, result_url, seen.metrics)
            seen.metrics.watch_rings(lambda: _depths(controller.rings))
            await supervisor.recover()
            server = await rpc.start_server(config.address, _services(controller, supervisor, epoch))
            ticking = asyncio.create_task(supervisor.run())
            process.announce(server.address)
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([stopping, ticking], return_when=asyncio.FIRST_COMPLETED)
            await server.stop()
            stopping.cancel()
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking  # raises what ended it, if that wasn't us


async def _assemble(
    config: ControllerConfig, journal: Journal, epoch: int, result_url: str, metrics: telemetry.Metrics
) -> tuple[Controller, Supervisor]:
    stored = await journal.get_meta(MODEL_KEY)
    model = ModelDescription.FromString(stored) if stored else None
    rings = {
        name: MemoryRing(name, epoch, attempts_max=config.attempts_max, on_dead_letter=lambda r: supervisor.removed(r))
        for name in (RING_REQUEST, RING_PHASE1, RING_PHASE2)
    }
    controller = Controller(config, Ledger(journal), rings, model, metrics)
    supervisor = Supervisor(controller, epoch, result_url)
    return controller, supervisor


def _depths(rings: Mapping[Ring.ValueType, MemoryRing]) -> list[telemetry.RingDepth]:
    stats = {ring_name(name): ring.stats() for name, ring in rings.items()}
    return [telemetry.RingDepth(name, s.ready_count, s.leased_count) for name, s in stats.items()]


def _services(controller: Controller, supervisor: Supervisor, epoch: int) -> list[rpc.Service]:
    return [
        (
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
            GenerationServicer(controller),
            "triptych.v1.GenerationService",
        ),
        (
            fleet_service_pb2_grpc.add_FleetServiceServicer_to_server,
            FleetServicer(controller, supervisor, epoch),
            "triptych.v1.FleetService",
        ),
        (
            ring_service_pb2_grpc.add_RingServiceServicer_to_server,
            RingServicer(controller.rings, controller.fleet.check),
            "triptych.v1.RingService",
        ),
    ]


if __name__ == "__main__":
    process.run(main)
