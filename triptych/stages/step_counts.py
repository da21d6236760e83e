"""How many denoising steps a scheduler can do, asked of the scheduler itself.

Some round their timesteps: past a number of steps the first two are equal, and the search for the first finds the
second. Multistep schedulers may fail an assertion then, after all steps but the last.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from triptych.model.fields import STEPS_MAX
from triptych.stages.undisturbed import undisturbed


def steps_max(scheduler: Any) -> int:
    """The most steps that the scheduler can do, or 0 where it can do all, or doesn't say.

    At the cost of some twenty lists of timesteps, found by halving, and of two runs on one number.
    """
    if not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "step"):
        return 0
    with undisturbed():
        tried = copy.deepcopy(scheduler)
        try:
            if not _starts_twice(tried, STEPS_MAX):
                return 0
            most = 1
            least_bad = STEPS_MAX
            while least_bad - most > 1:
                middle = (most + least_bad) // 2
                most, least_bad = (most, middle) if _starts_twice(tried, middle) else (middle, least_bad)
        except Exception:  # noqa: BLE001 — it wants more than a number of steps, which only its pipeline knows
            return 0
        return most if _runs(tried, most) and not _runs(tried, least_bad) else 0


def _starts_twice(scheduler: Any, count: int) -> bool:
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps
    return len(timesteps) > 1 and bool(timesteps[0] == timesteps[1])


def _runs(scheduler: Any, count: int) -> bool:
    scheduler.set_timesteps(count)
    sample = torch.zeros(1, 1, 1, 1)
    try:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]
    except Exception:  # noqa: BLE001 — as above
        return False
    return True
