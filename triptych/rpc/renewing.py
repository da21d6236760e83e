"""A gRPC channel that proves who calls, and that is replaced when its certificates are.

gRPC fixes a channel's certificate when it is made, and generated stubs fix their channel. So stubs get this one, which
asks for the present channel at each call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc

RETIRED_MAX = 4
"""Replaced channels that are kept for the calls that they carry. Streams may go on for days (heartbeats, watches), and
to cut one looks to its reader like a cancellation; so only the fifth renewal cuts what is left of the first."""

Metadata = Sequence[tuple[str, str]]


class RenewingChannel(grpc.aio.Channel):
    """See the module's docstring. `version` is asked before each call, and a new one is a new
    channel; `metadata` goes with each call.

    Belongs to the event loop that it is made in, as any channel does.
    """

    def __init__(
        self, make: Callable[[], grpc.aio.Channel], version: Callable[[], int], metadata: Callable[[], Metadata]
    ) -> None:
        self._make, self._version, self._metadata = make, version, metadata
        self._made = version()
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
        """See `grpc.aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._late("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._late("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._late("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._late("stream_stream", args, kwargs)

    def _late(self, kind: str, args: Any, kwargs: Any) -> Callable[..., Any]:
        """A method of a stub, bound to whatever channel there is when it is called."""

        bound: tuple[grpc.aio.Channel | None, Any] = (None, None)

        def call(*call_args: Any, metadata: Any = None, **call_kwargs: Any) -> Any:
            nonlocal bound
            channel = self._present()
            if bound[0] is not channel:
                bound = channel, getattr(channel, kind)(*args, **kwargs)
            return bound[1](*call_args, metadata=(*(metadata or ()), *self._metadata()), **call_kwargs)

        return call

    def _present(self) -> grpc.aio.Channel:
        version = self._version()
        if version != self._made:
            self._made = version
            self._retired.append(self._channel)
            self._channel = self._make()
            if len(self._retired) > RETIRED_MAX:
                task = asyncio.get_running_loop().create_task(self._retired.popleft().close(None))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._channel
