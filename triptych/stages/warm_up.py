"""Jobs before READY: what is made at first use (compiled code, pages of weights, kernels' choices) is there by then.

A role's inputs come from the role before it, which is in another process. Here it is stood for by a stage with zeros
for weights: what it hands on has the right shapes and types, and wrong values, which warm-ups don't need.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest, NotFinite
from triptych.means.options import RoleMeans, WarmUp
from triptych.model.adapters import SETTING, used
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import handoff
from triptych.stages.stage import Stage, StandIn
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import Adapter, GenerationRequest
from triptych.v1.model_pb2 import ModelDescription

PROMPT = "warm-up"
log = logging.getLogger(__name__)


def run(whole: Whole, stage: Stage, model: ModelDescription, means: RoleMeans, dtype: str) -> None:
    """Run the stage on each of its warm-ups. Raises what a job would raise, but for numbers that aren't finite.

    Each is run with an adapter, too, where a compiled model has slots for them, see `slots`.
    Where a model of the role is compiled and no warm-up is asked for, there is one of the default size, if a request
    without media makes one.
    """
    jobs = means.warm_up
    held = whole.component_names(stage.role)
    if not jobs and any(one.compile is not None for name, one in means.components.items() if name in held):
        jobs = (WarmUp(),)
        try:
            resolve(request_of(jobs[0], model), model)
        except InvalidRequest as error:
            log.warning("no warm-up: the first job has to wait until its models are compiled (%s)", error)
            return
    for index, job in enumerate(jobs, 1):
        started_s = time.monotonic()
        inputs = _inputs(whole, stage, model, means, job, dtype)
        _run(stage, inputs)
        for name in stage.adapter_samples:
            _run(stage, _with_adapter(inputs, name, model))
        log.info("warm-up %d took %.1f s", index, time.monotonic() - started_s)


def _run(stage: Stage, inputs: Mapping[str, object]) -> None:
    with contextlib.suppress(NotFinite):  # it is raised at the end, and zeros as weights make such numbers
        stage.run(inputs, lambda _step: None, lambda: False)


def _with_adapter(inputs: Mapping[str, object], name: str, model: ModelDescription) -> Mapping[str, object]:
    settings: Any = inputs[handoff.SETTINGS]
    items = [list(one) for one in used(GenerationRequest(adapters=[Adapter(name=name)]), model)]
    return {**inputs, handoff.SETTINGS: {**settings, SETTING: items}}


def request_of(job: WarmUp, model: ModelDescription) -> GenerationRequest:
    """The request of a warm-up, for a model that has these inputs."""
    known = {one.name for one in model.inputs}
    request = GenerationRequest(prompt=PROMPT if "prompt" in known else "", seed=0)
    if "num_inference_steps" in known:
        request.num_inference_steps = job.num_inference_steps
    for name in ("height", "width", "num_frames"):
        if value := getattr(job, name):
            setattr(request, name, value)
    if job.guidance_scale >= 0:
        request.guidance_scale = job.guidance_scale
    if job.parameters:
        request.parameters.update(dict(job.parameters))
    return request


def _inputs(
    whole: Whole, stage: Stage, model: ModelDescription, means: RoleMeans, job: WarmUp, dtype: str
) -> Mapping[str, object]:
    first: Mapping[str, object] = resolve(request_of(job, model), model).for_encoder()
    try:
        return _handed_on(whole, stage, means, first, dtype, "shallow")
    except Exception as error:  # noqa: BLE001  (a model may count its blocks; with all of them it takes longer)
        log.info("stand-ins with one block of each kind don't do: %s", type(error).__name__)
        return _handed_on(whole, stage, means, first, dtype, "whole")


def _handed_on(
    whole: Whole, stage: Stage, means: RoleMeans, values: Mapping[str, object], dtype: str, stand_in: StandIn
) -> Mapping[str, object]:
    """What stand-ins for the roles before make of the request."""
    dtypes = RoleMeans(components={name: type(one)(dtype=one.dtype) for name, one in means.components.items()})
    for role in ROLES[: ROLES.index(stage.role)]:
        before = Stage.load(whole, role, dtype=dtype, nonfinite="allow", means=dtypes, stand_in=stand_in)
        values = before.run(values, lambda _step: None, lambda: False)
    return values
