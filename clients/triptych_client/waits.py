"""Says what a fleet waits for while it starts or drains: which processes, for how long, and the last words of each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from triptych_client.launcher import Notice, notify
from triptych_client.processes import last_message

EVERY_S = 10.0
"""Between two sentences: a person begins to wonder, and a log of an hour's start stays readable."""
WORDS_CHARS_MAX = 120
"""Of a process's last message that are repeated."""


@contextlib.asynccontextmanager
async def telling(
    tell: Notice | None, about: str, waiting: Callable[[], Mapping[str, Path]], every_s: float = EVERY_S
) -> AsyncIterator[None]:
    """While the block runs, tell now and then which processes it waits for; `waiting` gives their logs by name.

    Only messages that are logged from now on are repeated.
    """
    begins = {name: _size_bytes(log) for name, log in waiting().items()}
    task = asyncio.create_task(_tell(tell, about, waiting, begins, every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _tell(
    tell: Notice | None,
    about: str,
    waiting: Callable[[], Mapping[str, Path]],
    begins: Mapping[str, int],
    every_s: float,
) -> None:
    start_s = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        left = waiting()
        said = {name: last_message(log, begins.get(name, 0)) for name, log in left.items()}
        names = ", ".join(f"{name} ({shortened(words)})" if words else name for name, words in said.items())
        if names:
            notify(tell, f"{about} for {time.monotonic() - start_s:.0f} s: {names}")


def shortened(words: str) -> str:
    """Words that fit into a sentence."""
    return words if len(words) <= WORDS_CHARS_MAX else words[:WORDS_CHARS_MAX] + "…"


def _size_bytes(log: Path) -> int:
    try:
        return os.stat(log).st_size
    except OSError:
        return 0
