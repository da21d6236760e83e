"""The engine of text encoders that an encoder's settings ask for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from triptych import addresses, rpc
from triptych.config import WorkerConfig
from triptych.security import auth
from triptych.transport.arena import Arena
from triptych.transport.fetcher import open_fetcher
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Role
from triptych.v1.text_encoder_service_pb2_grpc import TextEncoderServiceStub

from .text_encoder import ProcessEngine
from .vllm import VllmEngine

TextEngine = ProcessEngine | VllmEngine


@contextlib.asynccontextmanager
async def open_text_encoder(
    role: Role.ValueType, config: WorkerConfig, arena: Arena, security: auth.Security
) -> AsyncIterator[TextEngine | None]:
    """The engine; None where text encoders run here. Roles other than encoders take none."""
    if role != ROLE_ENCODER or not config.text_encoder_engine:
        yield None
        return
    kind, address = addresses.parse_engine("text_encoder_engine", config.text_encoder_engine)
    if kind == addresses.VLLM_ENGINE:
        yield VllmEngine(config, address)
        return
    fetcher = open_fetcher(arena, None, security, "", config.room_bytes_per_s_min)
    with contextlib.closing(fetcher):
        async with rpc.open_channel(str(address), security) as channel:
            yield ProcessEngine(config, TextEncoderServiceStub(channel), fetcher)
