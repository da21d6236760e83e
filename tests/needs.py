"""What a machine may lack: tests that need it skip with a sentence, or fail where nothing may be missing (CI)."""

from __future__ import annotations

import functools
import os

import pytest

from triptych.errors import TriptychError
from triptych.transport.mooncake_engine import load

STRICT = "TRIPTYCH_NOTHING_MISSING"
"""Set where a skip would hide that something wasn't installed."""


@functools.cache
def without_mooncake() -> str:
    """Why Mooncake can't be loaded here; empty where it can."""
    try:
        load()
    except TriptychError as error:
        return str(error)
    return ""


def skip(reason: str) -> None:
    """Leave a test out, for this reason."""
    if os.environ.get(STRICT):
        pytest.fail(f"{STRICT} is set, but {reason}")
    pytest.skip(reason)
