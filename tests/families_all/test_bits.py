"""Every workflow of every family, through CreateJob and four processes: the bits of diffusers' pipeline in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

from tests.e2e.conftest import succeeded
from tests.families import cases, monolith, zoo
from tests.families.cases import Case
from tests.families.requests import request_of
from tests.fleet.parked import ParkedFleet
from triptych.media.encoding import encode_outputs
from triptych.stages.observer import step_point
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER
from triptych.v1.job_pb2 import Job

CASES = [case for family in cases.WORKFLOWS for case in cases.cases_of(family)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_services_give_the_bits_of_one_process(
    case: Case, fleet_of: Callable[[Case], ParkedFleet], tmp_path: Path
) -> None:
    fleet = fleet_of(case)
    with fleet.client() as client:
        description = client.describe_model()
        job = succeeded(client, client.submit(request_of(case, output_format="npy")).job_id)
        paths = client.download_results(job, tmp_path / "out.npy")
    made = monolith.run(fleet.model, case, list(description.outputs))
    files = encode_outputs(made, "npy", 24.0)
    assert len(files) == len(paths) == len(job.artifacts)
    for file, path in zip(files, paths, strict=True):
        assert path.read_bytes() == file.data, f"{case.name}: {file.name}"
    assert any(np.asarray(value).std() > 0 for value in made.values()), "a flat result proves nothing"
    assert_steps(job, case)


def assert_steps(job: Job, case: Case) -> None:
    """All steps were reported, and their number was right."""
    assert job.step == job.step_count > 0, case.name


@pytest.mark.parametrize("family", MODULAR_PIPELINE_MAPPING)
def test_a_family_can_be_split_and_observed(family: str) -> None:
    """Of any version of diffusers, also without a tiny model."""
    whole = Whole(family, "", zoo.pipeline_class(family)(), "", "", ())
    assert step_point(whole.blocks[ROLE_TRANSFORMER]), f"{family} has no loop under denoise that can be observed"
    assert family in cases.WORKFLOWS, f"diffusers {diffusers.__version__} has {family}, and tests.families.zoo doesn't"


def test_every_family_and_workflow_of_diffusers_has_a_job() -> None:
    lacking = {
        (family, workflow)
        for family in cases.WORKFLOWS
        for workflow in zoo.pipeline_class(family)()._blocks._workflow_map or {}
        if workflow not in cases.NOT_RUN.get(family, {})
        and not any(case.workflow.startswith(workflow) for case in cases.cases_of(family))
    }
    assert lacking == set()
