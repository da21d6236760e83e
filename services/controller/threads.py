"""Threads for one kind of blocking work, shared fairly: one client's work doesn't keep the others' waiting.

Results are read, media checked and jobs pruned in threads of their own each, so that one kind can't starve another;
and within a kind one client has a share only.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class FairThreads:
    """`count` threads; a client that has a name gets at most `share` of them. All methods are the event loop's."""

    def __init__(self, name: str, count: int, share: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)
        self._count = count
        self._share = share
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._asking: Counter[str] = Counter()

    async def run(self, client: str, work: Callable[[], Result], wait_s: float | None = None) -> Result:
        """Do `work` in a thread when it is the client's turn. Raises TimeoutError where that isn't within `wait_s`."""
        async with self._turn(client, wait_s):
            context = contextvars.copy_context()  # so that log lines of the thread know their call
            future = asyncio.get_running_loop().run_in_executor(self._executor, context.run, work)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait([future])  # the thread is taken until then, although the caller has gone
                raise

    def close(self) -> None:
        """Start nothing more; what runs goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def _turn(self, client: str, wait_s: float | None) -> AsyncIterator[None]:
        turn = self._turns.setdefault(client, asyncio.Semaphore(self._share if client else self._count))
        self._asking[client] += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(wait_s):
                    await stack.enter_async_context(turn)
                    await stack.enter_async_context(self._free)
                yield
        finally:
            self._asking -= Counter({client: 1})
            if not self._asking[client]:
                del self._turns[client]
