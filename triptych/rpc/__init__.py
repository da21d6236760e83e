"""gRPC as every process uses it: one way to start a server, one to open a channel, one table of statuses."""

from __future__ import annotations

from triptych.rpc.channel import open_channel
from triptych.rpc.edge import Context, message_bytes, uninterrupted
from triptych.rpc.server import WHOLE, Server, Service, start_server
from triptych.rpc.status import ERROR_KEY, code_of, error_from, is_named, translate

__all__ = [
    "ERROR_KEY",
    "WHOLE",
    "Context",
    "Server",
    "Service",
    "code_of",
    "error_from",
    "is_named",
    "message_bytes",
    "open_channel",
    "start_server",
    "translate",
    "uninterrupted",
]
