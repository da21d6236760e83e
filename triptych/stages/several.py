"""Several results of one job, for pipelines that have no input for their number: each role runs once for each.

The encoder is given the seeds of the runs (`RUN_SEEDS` among the job's settings). What a role hands on is then a list
under `RUNS`, of what each run hands on, and so is what the decoder yields. A run is given what a job of its own with
that seed would be, so its bits are that job's. The runs share nothing: texts are encoded once for each. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.media.formats import RUNS
from triptych.model.inputs import RUN_SEEDS, SETTINGS
from triptych.stages import Step

Run = Callable[[Mapping[str, object], Callable[[Step], None]], dict[str, object]]


def runs_of(inputs: Mapping[str, object]) -> Sequence[Mapping[str, object]]:
    """The inputs of each run; empty where a stage's inputs are those of one."""
    settings: Any = inputs.get(SETTINGS, {})
    if RUN_SEEDS in settings:
        others = {name: value for name, value in settings.items() if name != RUN_SEEDS}
        return [{**inputs, SETTINGS: {**others, "seed": seed}} for seed in settings[RUN_SEEDS]]
    found: Any = inputs.get(RUNS, [])
    return list(found)


def run_each(runs: Sequence[Mapping[str, object]], run: Run, on_step: Callable[[Step], None]) -> dict[str, object]:
    """Run one after another. Steps count through; the runs to come are taken to have as many as the present one."""
    outputs = []
    steps_before = 0
    for number, inputs in enumerate(runs):
        newest = 0

        def on_own_step(step: Step, before: int = steps_before, left: int = len(runs) - number) -> None:
            nonlocal newest
            newest = step.step
            on_step(Step(before + step.step, before + left * step.step_count, step.preview_png))

        outputs.append(run(inputs, on_own_step))
        steps_before += newest
    return {RUNS: outputs}
