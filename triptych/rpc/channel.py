"""One way to open a channel."""

from __future__ import annotations

from typing import Any

import grpc

from triptych import addresses, telemetry
from triptych.rpc.options import CHANNEL_ONLY, CHANNEL_OPTIONS
from triptych.rpc.renewing import RenewingChannel
from triptych.security import auth


def open_channel(
    address: str, security: auth.Security = auth.OPEN, proxy: addresses.Proxy | None = None
) -> grpc.aio.Channel:
    """Open a traced channel to `host:port`. It connects lazily and reconnects by itself; it shows our
    certificate and token, and takes up new ones.

    It goes through `proxy`, or through none: gRPC alone would take what `http_proxy` says, for loopback, too.
    """
    target = f"dns:///{addresses.parse('address', address)}"  # a host called `unix` is no file
    options = [*CHANNEL_OPTIONS, *CHANNEL_ONLY, *addresses.proxy_options(proxy)]
    interceptors: Any = telemetry.client_interceptors()
    certificates, token = security.certificates, security.own_token

    def make() -> grpc.aio.Channel:
        if certificates is None:
            return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
        credentials = certificates.channel_credentials()
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)

    if certificates is None and token is None:
        return make()
    return RenewingChannel(
        make,
        version=certificates.refresh if certificates is not None else lambda: 0,
        metadata=lambda: token.metadata if token is not None else (),
    )
