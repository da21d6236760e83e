"""Writes docs/families.md: what each family of diffusers runs, takes, sends and holds. `python -m tools.families`.

It runs a job of each workflow on tiny models, in one process, role after role. Takes about two minutes of CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from tests.families import cases, ip_adapters, zoo
from tests.families.requests import request_of
from triptych.model.inputs import resolve
from triptych.roles import ROLES, role_name
from triptych.stages.adapters import Registry
from triptych.stages.describe import describe
from triptych.stages.library import diffusers
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import codec
from triptych.v1 import model_pb2
from triptych.v1.model_pb2 import ModelDescription

FILE = Path(__file__).parents[1] / "docs" / "families.md"
POINTS = {
    model_pb2.STEP_POINT_LOOP: "the loop",
    model_pb2.STEP_POINT_SCHEDULER: "the scheduler, in chunks",
    model_pb2.STEP_POINT_UNSPECIFIED: "nowhere: no loop is known",
}
HEAD = """# Families

What diffusers {version} registers, tried with tiny random models. `make test-families-all` sends a job of each
workflow below through CreateJob and four processes, and compares each bit with diffusers' own pipeline in one process.
`python -m tools.families` writes this page.

## Roles and steps

What each role holds are the models whose weights it loads at its start; one in brackets waits until a job uses it
([means](means.md#models-that-wait)). A step is reported, and a cancelled job stops, behind each
denoising step: by the pipeline's loop, or by the job's scheduler where the loop goes over chunks or segments.

| family | encoder | transformer | decoder | steps by |
| --- | --- | --- | --- | --- |
"""
MIDDLE = """
## Workflows

Inputs are those that the job here gives, beside the prompt and the numbers of all. Models that waited are those that
encoder and transformer load when this job is their first. Bytes are what crosses from encoder
to transformer and from transformer to decoder; they are these tiny jobs', and grow with size, frames and the model's
widths.

| family | workflow | inputs | models that waited | to the transformer | to the decoder |
| --- | --- | --- | --- | ---: | ---: |
"""
NOT_SPLIT = """
## Not in diffusers' modular blocks

Wan 2.2 TI2V-5B, whose timesteps differ from token to token (`expand_timesteps`): only diffusers' other pipelines have
them, so no role can be made of blocks. Triptych can't serve it.
"""
COMMON = {"height", "width", "num_frames", "num_inference_steps"}


class Facts(NamedTuple):
    """A family's lines in the two tables."""

    roles: str
    workflows: list[str]


def facts_of(family: str, root: Path) -> Facts:
    """Runs the family's jobs."""
    folder = zoo.make(family, root / family)
    whole, registry, stages = _loaded(folder, cases.cases_of(family)[0])
    held = (_listed([*stage.component_bytes], stage.waiting) for stage in stages)
    roles = _row(family, *held, POINTS[describe(whole).step_point])
    workflows = []
    for case in cases.cases_of(family):
        if case.model:
            folder = zoo.make(family, root / case.model, **cases.MODELS[case.model][1])
        whole, registry, stages = _loaded(folder, case)
        waiting = [stage.waiting for stage in stages]
        inputs = sorted(set(case.arguments) - COMMON)
        given = ", ".join(f"`{name}`" for name in inputs) or "–"
        crossing = _crossing(describe(whole, registry.described), stages, case)
        loaded = (
            f"{role_name(stage.role)}: {_listed([name for name in before if name not in stage.waiting], [])}"
            for stage, before in zip(stages, waiting, strict=True)
            if before != stage.waiting
        )
        workflows.append(_row(family, case.workflow or "–", given, "; ".join(loaded) or "–", *crossing))
    return Facts(roles, workflows)


def page(facts: Iterable[Facts]) -> str:
    """The whole page."""
    all_facts = list(facts)
    head = HEAD.format(version=".".join(diffusers.__version__.split(".")[:2]))
    roles = "".join(one.roles for one in all_facts)
    workflows = "".join(line for one in all_facts for line in one.workflows)
    return head + roles + MIDDLE + workflows + _not_run()


def _loaded(folder: str, case: cases.Case) -> tuple[Whole, Registry, list[Stage]]:
    whole = Whole.open(folder)
    registry = Registry.open(whole, str(ip_adapters.registry(folder, case)))
    return whole, registry, [Stage.load(whole, role, adapters=registry.files) for role in ROLES]


def _crossing(description: ModelDescription, stages: list[Stage], case: cases.Case) -> list[str]:
    """Bytes of tensors that the first two roles send."""
    values = resolve(request_of(case), description).for_encoder()
    sent = []
    for stage in stages:
        values = stage.run(values, lambda _step: None, lambda: False)
        if stage.role != ROLES[-1]:
            sent.append(str(sum(buffer.nbytes for buffer in codec.encode(values, "job").buffers)))
    return sent


def _listed(held: list[str], waiting: list[str]) -> str:
    return ", ".join([*(f"`{name}`" for name in held), *(f"(`{name}`)" for name in waiting)]) or "–"


def _not_run() -> str:
    reasons = [
        f"* {family}: {reason}.\n" + "".join(f"  * {workflow}\n" for workflow, why in left.items() if why == reason)
        for family, left in cases.NOT_RUN.items()
        for reason in dict.fromkeys(left.values())
    ]
    head = "\n## Not run\n\n" if reasons else ""
    return head + "".join(reasons) + NOT_SPLIT


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        FILE.write_text(page(facts_of(family, Path(root)) for family in cases.WORKFLOWS))


if __name__ == "__main__":
    main()
