"""Flipped bytes: as many as promised, spread over the file's start, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.faults import FLIPPED_BYTES, FLIPPED_SPAN_BYTES, flip


@pytest.mark.parametrize("size_bytes", [2**16, 4 * 2**20])
def test_flip(size_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "arena"
    path.write_bytes(bytes(size_bytes))
    flip(path, random.Random(1))
    flipped = np.flatnonzero(np.fromfile(path, np.uint8))
    assert path.stat().st_size == size_bytes
    assert len(flipped) == FLIPPED_BYTES
    assert flipped.max() < FLIPPED_SPAN_BYTES
    assert np.diff(flipped).max() < 2 * min(size_bytes, FLIPPED_SPAN_BYTES) / FLIPPED_BYTES
