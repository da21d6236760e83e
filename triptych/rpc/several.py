"""A channel to whichever of several controllers is active.

gRPC's own lists of addresses take no names, check certificates for one name only, and find a host that is stopped or
cut off by keepalive alone. So each address has a channel here. Calls go to the present one; a task asks the present one
for its health, and, where that isn't SERVING in time, all of them. What still runs on the channel that was left is cut:
to its caller that looks like any broken connection, and it calls again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)

ACTIVE_SERVICE = "triptych.v1.FleetService"
"""What the active controller alone says SERVING of."""
LOOK_PAUSE_S = 0.5
"""Between two looks: a fraction of any lease."""
LOOK_TIMEOUT_S = 2.0
"""A controller that doesn't answer for so long is gone, whatever its connection says."""


class SeveralChannel(grpc.aio.Channel):
    """See the module's docstring. Belongs to the event loop that it is made in."""

    def __init__(self, makes: Sequence[Callable[[], grpc.aio.Channel]]) -> None:
        """`makes` opens a channel to each address; there are two or more."""
        self._makes = makes
        self._channels = [make() for make in makes]
        self._present = 0
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SeveralChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close all of them."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        for channel in self._channels:
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channels[self._present].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channels[self._present].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channels[self._present].channel_ready()

    def _late(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub, bound to the channel that is present when it is called."""
        bound: tuple[grpc.aio.Channel | None, Any] = (None, None)

        def call(*call_args: Any, **call_kwargs: Any) -> Any:
            nonlocal bound
            if self._looking is None:
                self._looking = asyncio.get_running_loop().create_task(self._look())
            channel = self._channels[self._present]
            if bound[0] is not channel:
                bound = channel, getattr(channel, kind)(*args, **kwargs)
            return bound[1](*call_args, **call_kwargs)

        return call

    unary_unary = functools.partialmethod(_late, "unary_unary")
    unary_stream = functools.partialmethod(_late, "unary_stream")
    stream_unary = functools.partialmethod(_late, "stream_unary")
    stream_stream = functools.partialmethod(_late, "stream_stream")

    async def _look(self) -> None:
        while True:
            if not await self._is_active(self._present):
                found = await asyncio.gather(*map(self._is_active, range(len(self._channels))))
                if True in found and not found[self._present]:
                    await self._turn(found.index(True))
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _is_active(self, index: int) -> bool:
        request = health_pb2.HealthCheckRequest(service=ACTIVE_SERVICE)
        try:
            call = health_pb2_grpc.HealthStub(self._channels[index]).Check(request, timeout=LOOK_TIMEOUT_S)
            return bool((await call).status == health_pb2.HealthCheckResponse.SERVING)
        except grpc.aio.AioRpcError:
            return False

    async def _turn(self, index: int) -> None:
        """Go on with another, and cut what still runs on the one before."""
        left, self._present = self._present, index
        log.warning("another controller is active: the number %d of the list", index + 1)
        before, self._channels[left] = self._channels[left], self._makes[left]()
        await before.close()
