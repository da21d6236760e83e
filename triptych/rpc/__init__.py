"""gRPC as every process uses it: one way to start a server, one to open a channel, one table of statuses."""

from __future__ import annotations

from triptych.rpc.channel import open_channel
from triptych.rpc.edge import Context, message_bytes, uninterrupted
from triptych.rpc.server import ALIVE, WHOLE, Server, Service, start_server
from triptych.rpc.status import code_of, error_from, is_named, reason_from, translate, was_cut

__all__ = [
    "ALIVE",
    "WHOLE",
    "Context",
    "Server",
    "Service",
    "code_of",
    "error_from",
    "is_named",
    "message_bytes",
    "open_channel",
    "reason_from",
    "start_server",
    "translate",
    "uninterrupted",
    "was_cut",
]
