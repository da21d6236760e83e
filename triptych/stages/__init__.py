"""Stages: split any diffusers pipeline into encoder, transformer and decoder, load one, run it.

    whole = Whole.open("path/or/hub-id")
    description = whole.describe()
    stages = [Stage.load(whole, role) for role in ROLES]
    values = request_inputs(request, description)
    for stage in stages:
        values = stage.run(values, on_step, cancelled)

No gRPC, no rings, and no code per model family: `denoise` in the pipeline's own blocks says where to cut. Importing
this package imports torch and diffusers.
"""

from triptych.roles import ROLES, role_name
from triptych.stages.inputs import request_inputs
from triptych.stages.observer import Step
from triptych.stages.stage import DTYPES, Stage
from triptych.stages.whole import Whole

__all__ = ["DTYPES", "ROLES", "Stage", "Step", "Whole", "request_inputs", "role_name"]
