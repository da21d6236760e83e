"""What every channel and every server is set to."""

from __future__ import annotations

from collections.abc import Sequence

MESSAGE_BYTES_MAX = 64 * 2**20
"""Largest message. Requests are bounded further in `requests`. Tensors travel in chunks of 1 MiB."""
KEEPALIVE_MS = 20_000
"""Ping interval: short enough that a dead peer is noticed before any timeout of a minute."""

_COMMON: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
)
CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    *_COMMON,
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted controller must be found again at once, not after gRPC's default two minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    *_COMMON,
    # gRPC's own default of five minutes ends the connections of Envoy, and of Go's and Java's clients, whose shortest
    # interval is 10 s.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
    ("grpc.so_reuseport", 0),
)
