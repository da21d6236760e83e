"""One way to open a channel: traced, with this process's certificate and token, and with new ones as they come.

gRPC fixes a channel's certificate when it is made, and generated stubs fix their channel. So stubs get a channel that
asks for the present one at each call.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from triptych import addresses, telemetry
from triptych.rpc.options import CHANNEL_OPTIONS
from triptych.rpc.several import SeveralChannel
from triptych.security import auth
from triptych.security.certificates import Certificates

RETIRED_MAX = 4
"""Replaced channels that are kept for the calls that they carry. Streams may go on for days (heartbeats, watches), and
to cut one looks to its reader like a cancellation; so only the fifth renewal cuts what is left of the first."""


def open_channel(
    address: str,
    security: auth.Security = auth.OPEN,
    proxy: addresses.Proxy | None = None,
) -> grpc.aio.Channel:
    """Open a traced channel to `host:port`. It connects lazily and reconnects by itself. Of several addresses with
    commas between them it goes to that of the active controller.

    It goes through `proxy`, or through none: gRPC alone would take what `http_proxy` says, for loopback, too.
    """
    several = addresses.parse_several("address", address)
    if len(several) > 1:
        one = functools.partial(open_channel, security=security, proxy=proxy)
        return SeveralChannel([functools.partial(one, str(part)) for part in several])
    target = f"dns:///{several[0]}"  # a host called `unix` is no file
    options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, *addresses.proxy_options(proxy)]
    interceptors: Any = telemetry.client_interceptors()
    certificates = security.certificates

    def make() -> grpc.aio.Channel:
        if certificates is None:
            return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
        credentials = certificates.channel_credentials()
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)

    if certificates is None and security.own_token is None:
        return make()
    return RenewingChannel(make, certificates, security.own_token)


class RenewingChannel(grpc.aio.Channel):
    """A channel that is replaced when the certificates are, and that shows the token with each call.

    Belongs to the event loop that it is made in, as any channel does.
    """

    def __init__(
        self, make: Callable[[], grpc.aio.Channel], certificates: Certificates | None, token: auth.OwnToken | None
    ) -> None:
        self._make = make
        self._certificates = certificates
        self._token = token
        self._version = self._newest()
        self._channel = make()
        self._retired: deque[grpc.aio.Channel] = deque()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel and all that it has replaced."""
        for channel in (self._channel, *self._retired):
            await channel.close(grace)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def _late(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub, bound to the channel that there is when it is called."""

        bound: tuple[grpc.aio.Channel | None, Any] = (None, None)

        def call(*call_args: Any, metadata: Any = None, **call_kwargs: Any) -> Any:
            nonlocal bound
            channel = self._present()
            if bound[0] is not channel:
                bound = channel, getattr(channel, kind)(*args, **kwargs)
            shown = self._token.metadata if self._token is not None else ()
            return bound[1](*call_args, metadata=(*(metadata or ()), *shown), **call_kwargs)

        return call

    unary_unary = functools.partialmethod(_late, "unary_unary")
    unary_stream = functools.partialmethod(_late, "unary_stream")
    stream_unary = functools.partialmethod(_late, "stream_unary")
    stream_stream = functools.partialmethod(_late, "stream_stream")

    def _newest(self) -> int:
        return self._certificates.refresh() if self._certificates is not None else 0

    def _present(self) -> grpc.aio.Channel:
        version = self._newest()
        if version != self._version:
            self._version = version
            self._retired.append(self._channel)
            self._channel = self._make()
            if len(self._retired) > RETIRED_MAX:
                task = asyncio.get_running_loop().create_task(self._retired.popleft().close(None))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._channel
