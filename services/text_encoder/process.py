"""The process around the text encoders.

Start: serve (NOT_SERVING), load the models, say READY. SIGTERM: say NOT_SERVING, finish the calls in hand, end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from triptych import rpc, telemetry
from triptych.config import TextEncoderConfig, load
from triptych.errors import InvalidRequest
from triptych.transport import shared_memory
from triptych.transport.arena import Arena
from triptych.v1 import text_encoder_service_pb2_grpc, worker_service_pb2_grpc

from .. import process
from .embeddings import Embeddings
from .servicer import ROOM_SERVICE, TEXT_ENCODER_SERVICE, Loaded, RoomServicer, TextEncoderServicer
from .waiting import Waiting

if TYPE_CHECKING:
    from .models import Models

log = logging.getLogger(__name__)

NAME = "text-encoder"


def run_text_encoder() -> None:
    """Run the process until SIGTERM."""
    process.run(_main)


async def _main() -> None:
    config = load(TextEncoderConfig, None)
    if not config.model:
        raise InvalidRequest("model", "", "a folder or hub id of a diffusers pipeline")
    stop = process.on_signals(config.lame_duck_s)
    shared_memory.sweep()
    async with contextlib.AsyncExitStack() as stack:
        telemetry.setup_logging(NAME)
        measured = stack.enter_context(telemetry.setup(f"triptych-{NAME}", config.trace_file, config.metrics_port))
        process.show_health(config, measured)
        security = process.open_security(config)
        arena = stack.enter_context(Arena(config.arena_bytes))
        metrics = telemetry.TextEncoderMetrics(measured.meter)
        loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        add_rooms = worker_service_pb2_grpc.add_WorkerServiceServicer_to_server
        add = text_encoder_service_pb2_grpc.add_TextEncoderServiceServicer_to_server
        server = await rpc.start_server(
            config.address,
            [
                (add_rooms, RoomServicer(arena), ROOM_SERVICE),
                (add, TextEncoderServicer(loaded, metrics), TEXT_ENCODER_SERVICE),
            ],
            not_serving=[rpc.WHOLE, ROOM_SERVICE, TEXT_ENCODER_SERVICE],
            security=security,
            client_address=config.client_address,
            metrics=measured,
        )
        stack.push_async_callback(server.stop, 0)
        models = await asyncio.to_thread(_load, config)
        address = f"{config.host}:{server.port}"
        embeddings = Embeddings(arena, address, config.embeddings_bytes_max)
        metrics.watch_embeddings(lambda: embeddings.kept_bytes)
        waiting = Waiting(models, config, metrics)
        taking = asyncio.create_task(waiting.run())
        stack.callback(taking.cancel)
        loaded.set_result(Loaded(models, embeddings, waiting))
        await server.set_serving(not stop.leaving.is_set())
        process.announce(address, server.client_address)
        await stop.leaving.wait()
        await server.set_serving(False)
        await stop.now.wait()
        await server.stop(config.drain_timeout_s)  # new calls are refused, those in hand end


def _load(config: TextEncoderConfig) -> Models:
    log.info("importing torch and diffusers")
    from triptych.stages.whole import Whole  # late: these import torch

    from .models import Models

    return Models(Whole.open(config.model, config.revision, config.variant, config.workflow_names), config)
