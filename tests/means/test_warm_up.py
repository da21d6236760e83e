"""Warm-ups: by the first job everything is compiled, for its very shapes, and no bit has changed."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests import needs
from tests.means.conftest import FIELDS, components, opened, ours, plain_stage, reference, run_job
from triptych.means.options import of_tables
from triptych.roles import ROLES
from triptych.stages import warm_up
from triptych.stages.stage import Stage
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_TRANSFORMER
from triptych.v1.model_pb2 import INPUT_KIND_IMAGE, InputDescription, ModelDescription

SIZE = {"height": 32, "width": 64}
DECODER = components(vae={"compile": {"what": "whole", "backend": "aot_eager", "dynamic": False}})
COMPILED = {
    "wan_t2v": (ROLE_TRANSFORMER, components(transformer={"compile": {"backend": "aot_eager", "dynamic": False}})),
    "qwen_image": (ROLE_DECODER, DECODER),
}


def warmed(folder: str, role: Any, tables: Any, **job: Any) -> list[Stage]:
    """A role that has run its warm-up, between plain ones."""
    whole, model = opened(folder)
    means = of_tables({**tables, "warm_up": [job]} if job else tables)
    stages = [plain_stage(folder, one) for one in ROLES]
    stages[ROLES.index(role)] = Stage.load(whole, role, means=means)
    warm_up.run(whole, stages[ROLES.index(role)], model, means, "float32")
    return stages


@pytest.mark.parametrize("name", COMPILED)
def test_the_first_job_compiles_nothing(name: str, folder_of: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    role, tables = COMPILED[name]
    fields = FIELDS[name]
    job = {**SIZE, **fields}
    stages = warmed(folder_of(name), role, tables, **job)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    made = run_job(folder_of(name), stages, fields)
    assert counters["stats"]["unique_graphs"] == compiled, "the stand-ins' shapes are the job's"
    assert np.array_equal(made, ours(folder_of(name), fields, {})), "zeros as weights have left nothing behind"
    torch._dynamo.reset()


def test_without_a_warm_up_what_is_compiled_gets_one(folder_of: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    means = components(transformer={"compile": {"backend": "aot_eager"}})
    with_default = warmed(folder_of("qwen_image"), ROLE_TRANSFORMER, means)
    assert counters["stats"]["unique_graphs"] > 0
    assert len(with_default) == len(ROLES)
    torch._dynamo.reset()


def test_a_role_has_no_warm_up_for_what_another_compiles(folder_of: Any, caplog: Any) -> None:
    """The means of a fleet name the models of all roles."""
    whole, model = opened(folder_of("qwen_image"))
    means = of_tables(components(transformer={"compile": {"backend": "aot_eager"}}))
    with caplog.at_level(logging.INFO, warm_up.log.name):
        warm_up.run(whole, plain_stage(folder_of("qwen_image"), ROLE_DECODER), model, means, "float32")
    assert "warm-up" not in caplog.text


def test_a_model_that_needs_a_picture_says_that_it_has_no_warm_up(folder_of: Any, caplog: Any) -> None:
    whole, known = opened(folder_of("qwen_image"))
    model = ModelDescription()
    model.CopyFrom(known)
    model.inputs.append(InputDescription(name="must", kind=INPUT_KIND_IMAGE, required=True))
    means = of_tables(components(transformer={"compile": {"backend": "aot_eager"}}))
    with caplog.at_level(logging.WARNING):
        warm_up.run(whole, plain_stage(folder_of("qwen_image"), ROLE_TRANSFORMER), model, means, "float32")
    assert "no warm-up: the first job has to wait" in caplog.text
    assert "must" in caplog.text


def test_stand_ins_take_no_memory_and_keep_ties(folder_of: Any) -> None:
    whole, _model = opened(folder_of("wan_t2v"))
    shallow = Stage.load(whole, ROLE_TRANSFORMER, stand_in="shallow")._pipeline._role_components.get("transformer")
    deep = Stage.load(whole, ROLE_TRANSFORMER, stand_in="whole")._pipeline._role_components.get("transformer")
    assert (len(shallow.blocks), len(deep.blocks)) == (1, 2)
    assert not any(bool(one.any()) for one in deep.parameters())


def test_compiled_by_inductor_it_gives_what_one_process_gives(folder_of: Any) -> None:
    """diffusers' own call in one process compiles to the same code."""
    if shutil.which("g++") is None:
        needs.skip("there is no g++, which torch.compile needs on a CPU")
    torch._dynamo.reset()
    folder, fields = folder_of("wan_t2v"), {**FIELDS["wan_t2v"], "num_inference_steps": 2}
    means = components(transformer={"compile": {"fullgraph": True, "dynamic": False}})
    stages = warmed(folder, ROLE_TRANSFORMER, means, **SIZE, **fields)
    made = run_job(folder, stages, fields)
    torch._dynamo.reset()
    compiled = reference(
        folder, fields, lambda pipeline: pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    )
    assert np.array_equal(made, compiled)
    np.testing.assert_allclose(made, ours(folder, fields, {}), atol=1e-4)
    torch._dynamo.reset()
