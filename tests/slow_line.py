"""A slow line: forwards TCP connections to one address, so many bytes a second each way, and can break once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

PIECE_BYTES = 2**12


class SlowLine:
    """See `slow_line`."""

    def __init__(self, address: str, bytes_per_s: float) -> None:
        self._target, self._bytes_per_s = address, bytes_per_s
        self.address = ""
        self.down_bytes = self.up_bytes = self.connections = 0
        self.breaks_after: int | None = None
        """Break the connection when so many bytes came from the server; once."""
        self.breaks_after_up: int | None = None
        """The same, of bytes to the server."""

    async def serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One connection."""
        host, _, port = self._target.rpartition(":")
        self.connections += 1
        far, on = await asyncio.open_connection(host, int(port))

        def up(count: int) -> bool:
            self.up_bytes += count
            is_broken = self.breaks_after_up is not None and self.up_bytes >= self.breaks_after_up
            if is_broken:
                self.breaks_after_up = None
            return is_broken

        def down(count: int) -> bool:
            self.down_bytes += count
            is_broken = self.breaks_after is not None and self.down_bytes >= self.breaks_after
            if is_broken:
                self.breaks_after = None
            return is_broken

        await asyncio.gather(self._pass(near, on, up, back), self._pass(far, back, down, on), return_exceptions=True)

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        count: Callable[[int], bool],
        other: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while piece := await source.read(PIECE_BYTES):
            if count(len(piece)):
                break
            target.write(piece)
            await target.drain()
            due_s = max(due_s, loop.time() - 0.05) + len(piece) / self._bytes_per_s
            await asyncio.sleep(due_s - loop.time())
        target.close()
        other.close()


@contextlib.asynccontextmanager
async def slow_line(address: str, bytes_per_s: float) -> AsyncIterator[SlowLine]:
    """Listens on a free port of 127.0.0.1 while its block lasts."""
    line = SlowLine(address, bytes_per_s)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0, limit=PIECE_BYTES)
    line.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
