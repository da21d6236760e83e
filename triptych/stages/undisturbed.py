"""Loading, building and caching without drawing from the job's random numbers.

Models draw from the global generators when they are made, and some are made at their first use, in the middle of a job
(`pipelines.Components`). Without this the first job after a start would differ from the second.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every global generator, of torch (CPU and CUDA), numpy and Python, as it was before the block."""
    python = random.getstate()
    legacy_numpy = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
