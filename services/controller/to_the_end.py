"""Work that must not stop half-way.

gRPC cancels a servicer when its client goes away or its deadline passes. Between a commit and what follows from it
that would leave the disk and the memory of one job apart: accepted, say, and in no queue until the next restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_tasks: set[asyncio.Task[Any]] = set()
"""The event loop itself keeps only weak references."""


async def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`. Where the caller is cancelled meanwhile, the work goes on, and its errors are nobody's."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_done)
    return await asyncio.shield(task)


def _done(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()  # raised to the caller, where that is still there
