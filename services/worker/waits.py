"""Waiting for one of several events."""

from __future__ import annotations

import asyncio


async def any_set(*events: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait until one of the events is set or the time is over; whether one is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
