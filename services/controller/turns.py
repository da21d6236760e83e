"""Loops over all jobs take turns with everything else on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

TURN_COUNT = 256
"""Jobs between two turns of others: some milliseconds."""


async def in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """Yield each item. Other tasks have their turn now and then, and may change what isn't yielded yet."""
    for start in range(0, len(items), TURN_COUNT):
        for item in items[start : start + TURN_COUNT]:
            yield item
        await asyncio.sleep(0)
