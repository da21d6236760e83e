"""Stages: split any diffusers pipeline into encoder, transformer and decoder, load one, run it.

    whole = Whole.open("path/or/hub-id")
    description = describe(whole)
    stages = [Stage.load(whole, role) for role in ROLES]
    values = resolve(request, description).for_encoder()
    for stage in stages:
        values = stage.run(values, on_step, cancelled)

No gRPC, no rings, and no code per model family: `denoise` in the pipeline's own blocks says where to cut. `Stage`
and `Whole` are loaded when they are first asked for, and torch and diffusers with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from triptych.model.inputs import resolve
from triptych.roles import ROLES, role_name
from triptych.stages.interface import AnyStage, Step

if TYPE_CHECKING:
    from triptych.stages.stage import Stage
    from triptych.stages.whole import Whole

__all__ = ["ROLES", "AnyStage", "Stage", "Step", "Whole", "resolve", "role_name"]


def __getattr__(name: str) -> object:
    """Load what imports torch, on demand."""
    if name in ("Stage", "Whole"):
        return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
