"""Shares of what all clients use: amounts by client, and threads for one kind of blocking work.

Results are read, media checked and jobs pruned in threads of their own each, so that one kind can't starve another;
and within a kind one client has a share only.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

Key = TypeVar("Key")
Result = TypeVar("Result")


def add_to(counts: Counter[Key], key: Key, change: int) -> None:
    """Count on, and forget what there is none of."""
    counts[key] += change
    if not counts[key]:
        del counts[key]


@contextlib.contextmanager
def counted(counts: Counter[Key], key: Key, amount: int = 1) -> Iterator[None]:
    """Count an amount in until the context ends."""
    add_to(counts, key, amount)
    try:
        yield
    finally:
        add_to(counts, key, -amount)


class FairThreads:
    """`count` threads; a client that has a name gets at most `share` of them. All methods are the event loop's."""

    def __init__(self, name: str, count: int, share: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)
        self._count = count
        self._share = share
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By client, as long as somebody waits or works."""

    async def run(self, client: str, work: Callable[[], Result], wait_s: float | None = None) -> Result:
        """Do `work` in a thread when it is the client's turn. Raises TimeoutError where that isn't within `wait_s`."""
        turn = self._turns.setdefault(client, asyncio.Semaphore(self._share if client else self._count))
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(wait_s):
                await stack.enter_async_context(turn)
                await stack.enter_async_context(self._free)
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
