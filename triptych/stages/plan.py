"""The sizes of a model's roles, for `triptych.planning`: from its configuration alone, or with its weights at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from io import BytesIO

import torch
from PIL import Image

from triptych.errors import ModelInvalid
from triptych.model.inputs import resolve
from triptych.planning.fleet import RoleSize, StageSeconds
from triptych.planning.quantization import Kind
from triptych.roles import ROLES, role_name
from triptych.stages.describe import describe
from triptych.stages.dry_run import LONG_PROMPT as LONG_PROMPT
from triptych.stages.dry_run import DryRun, dry_run
from triptych.stages.pipelines import comes_from_files, is_model
from triptych.stages.sizes import component_size
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.job_pb2 import GenerationRequest

STEPS = 2
"""Denoising steps of a dry run. One would take as much memory, but some schedulers do no single one."""
STAND_IN_PX = 512
"""Height and width of a picture that stands in for a required input where the plan names no size."""


def role_sizes(
    whole: Whole, dtypes: Mapping[str, torch.dtype], quantizations: Mapping[str, Kind], runs: Mapping[str, DryRun]
) -> dict[str, RoleSize]:
    """The size of each role by its name. `runs` are those of `dry_runs`; a role without one has no activations.

    A role holds what it loads at its start, and of the models that wait those that its run called, or all without one.

    Raises `ModelInvalid` where the configuration of a component can't be read.
    """
    sizes = {}
    for number in ROLES:
        role = role_name(number)
        run = runs.get(role)
        unused = set(whole.waiting_names(number)) - set(run.called) if run else set()
        specs = [whole.pipeline._component_specs[name] for name in whole.component_names(number) if name not in unused]
        models = [spec for spec in specs if comes_from_files(spec) and is_model(spec)]
        sizes[role] = RoleSize(
            role,
            [component_size(spec, dtypes[role], quantizations.get(role)) for spec in models],
            run.activation_bytes if run else None,
            run.room_bytes if run else None,
        )
    return sizes


def dry_runs(
    whole: Whole, request: Callable[[], GenerationRequest], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, DryRun], str]:
    """What each role takes for `request()`, by its name; and a sentence where the model doesn't run without weights."""
    try:
        runs = dry_run(whole, request(), {role: dtypes[role_name(role)] for role in ROLES})
    except ModelInvalid as error:
        return {}, f"no activations and rooms: {error}"
    return {role_name(role): run for role, run in runs.items()}, ""


def stage_seconds(
    whole: Whole, request: GenerationRequest, dtypes: Mapping[str, torch.dtype], device: str
) -> StageSeconds:
    """Seconds of one job in each role, here and now; the job before it warms up.

    Raises `InvalidRequest` for what the model can't take, and `ModelInvalid` where its weights can't be loaded.
    """
    stages = [
        Stage.load(whole, role, device=device, dtype=str(dtypes[role_name(role)]).removeprefix("torch."))
        for role in ROLES
    ]
    seconds: list[float] = []
    for _ in range(2):
        seconds.clear()
        values = resolve(request, describe(whole)).for_encoder()
        for stage in stages:
            started_s = time.perf_counter()
            values = stage.run(values, lambda _step: None, lambda: False)
            if stage._pipeline.device.type == "cuda":
                torch.cuda.synchronize(stage._pipeline.device)
            seconds.append(time.perf_counter() - started_s)
    return StageSeconds(*seconds)


def stand_ins(whole: Whole, height: int, width: int) -> dict[str, bytes]:
    """A grey picture, as the bytes of a PNG, for every picture that the pipeline can't do without, by input name."""
    needed = [one.name for one in describe(whole).inputs if one.required and one.kind == model_pb2.INPUT_KIND_IMAGE]
    file = BytesIO()
    Image.new("RGB", (width or STAND_IN_PX, height or STAND_IN_PX), (128, 128, 128)).save(file, "png")
    return dict.fromkeys(needed, file.getvalue())
