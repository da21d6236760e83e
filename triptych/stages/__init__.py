"""Stages: split any diffusers pipeline into encoder, transformer and decoder, load one, run it.

    whole = Whole.open("path/or/hub-id")
    description = whole.describe()
    stages = [Stage.load(whole, role) for role in ROLES]
    values = request_inputs(request, description)
    for stage in stages:
        values = stage.run(values, on_step, cancelled)

No gRPC, no rings, and no code per model family: `denoise` in the pipeline's own blocks says where to cut. `Stage`,
`Whole` and `DTYPES` are loaded when they are first asked for, and torch and diffusers with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.roles import ROLES, role_name
from triptych.stages.inputs import request_inputs
from triptych.stages.interface import AnyStage, Step

if TYPE_CHECKING:
    from triptych.stages.stage import DTYPES, Stage
    from triptych.stages.whole import Whole

__all__ = ["DTYPES", "ROLES", "AnyStage", "Stage", "Step", "Whole", "request_inputs", "role_name"]


def __getattr__(name: str) -> object:
    """Load what imports torch, on demand."""
    if name in ("DTYPES", "Stage"):
        from triptych.stages import stage

        return getattr(stage, name)
    if name == "Whole":
        from triptych.stages.whole import Whole

        return Whole
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
