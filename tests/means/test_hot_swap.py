"""Adapters that are swapped into a compiled model: the bits of diffusers' pipeline, and nothing compiled again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from tests import needs
from tests.adapters import loras
from tests.means.conftest import FIELDS, Array, components, opened, plain_stage, reference
from tests.stages.test_parity import request_of
from triptych.errors import InvalidRequest
from triptych.means.options import Compile, of_tables
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import compiling, warm_up
from triptych.stages.adapters import Registry
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER
from triptych.v1.job_pb2 import Adapter

MODEL = "wan_t2v"
JOB = {**FIELDS[MODEL], "num_inference_steps": 2}
WARM_UP = {"height": 32, "width": 64, **JOB}
RANKS = {"a": 2, "b": 5, "few": 3, "wide": 9, "dora": 2}
RANK = 6
"""Of slots."""
Use = Mapping[str, float]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    if not loras.HAS_PEFT:
        needs.skip("peft isn't installed, which loads adapters: pip install 'triptych[serve]'")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def folder(folder_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters: `b` has another alpha in one of its blocks, `few` touches one layer, `wide` and `dora` fit no slot."""
    root = tmp_path_factory.mktemp("adapters")
    pipeline = loras.whole(folder_of(MODEL))
    made = {name: loras.tensors(pipeline, "transformer", rank, seed) for seed, (name, rank) in enumerate(RANKS.items())}
    made["few"] = {name: tensor for name, tensor in made["few"].items() if "blocks.0.attn1.to_q" in name}
    made["dora"] |= {
        name.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(len(tensor))
        for name, tensor in made["dora"].items()
        if "lora_B" in name
    }
    paths = sorted({name.split(".", 1)[1].rsplit(".lora_", 1)[0] for name in made["b"]})
    alphas = {path: 2.0 for path in paths if path.startswith("blocks.1.")}
    facts = {"r": RANKS["b"], "lora_alpha": 3.0, "alpha_pattern": alphas, "target_modules": paths}
    told = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in facts.items()})}
    for name, tensors in made.items():
        save_file(tensors, root / f"{name}.safetensors", told if name == "b" else None)
    return root


class Role:
    """A transformer with slots between plain roles, warmed up."""

    def __init__(self, model: str, adapters: Path, adapter_bytes_max: int = 2**32, **compiled: Any) -> None:
        whole, _model = opened(model)
        registry = Registry.open(whole, str(adapters))
        self._model = describe(whole, registry.described)
        compiled = {"backend": "aot_eager", "dynamic": False, "adapter_rank": RANK, **compiled}
        means = of_tables({**components(transformer={"compile": compiled}), "warm_up": [WARM_UP]})
        self._stages = [plain_stage(model, role) for role in ROLES]
        self._stages[ROLES.index(ROLE_TRANSFORMER)] = self.stage = Stage.load(
            whole, ROLE_TRANSFORMER, means=means, adapters=registry.files, adapter_bytes_max=adapter_bytes_max
        )
        warm_up.run(whole, self.stage, self._model, means, "float32")

    def made(self, use: Use) -> Array:
        request = request_of(dict(JOB), 7)
        request.adapters.extend(Adapter(name=name, weight=weight) for name, weight in use.items())
        values: Mapping[str, object] = resolve(request, self._model).for_encoder()
        for stage in self._stages:
            values = stage.run(values, lambda _step: None, lambda: False)
        (output,) = values.values()
        return np.asarray(output)


def of_diffusers(model: str, folder: Path, use: Use, rank: int | None = RANK, **compiled: Any) -> Array:
    """The whole pipeline with peft's preparation for a hot swap, before diffusers compiles it."""
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    def change(pipeline: Any) -> None:
        for name in use:
            pipeline.load_lora_weights(str(folder / f"{name}.safetensors"), adapter_name=name)
        if use:
            pipeline.set_adapters(list(use), list(use.values()))
        if use and rank:
            prepare_model_for_compiled_hotswap(pipeline.transformer, target_rank=rank)
        pipeline.transformer.compile_repeated_blocks(**{"backend": "aot_eager", "dynamic": False, **compiled})

    return reference(model, JOB, change)


def eager(model: str, folder: Path, use: Use) -> Array:
    """The whole pipeline, not compiled."""

    def change(pipeline: Any) -> None:
        for name in use:
            pipeline.load_lora_weights(str(folder / f"{name}.safetensors"), adapter_name=name)
        pipeline.set_adapters(list(use), list(use.values()))

    return reference(model, JOB, change)


def compiled_count() -> int:
    """Graphs that were ever compiled."""
    return int(counters["stats"]["unique_graphs"])


A, B = {"a": 1.0}, {"b": 0.5}
BOTH = {"a": 0.7, "b": -0.5}
SWAPPED: Sequence[Use] = (A, {}, B, {"a": 0.3}, {"few": 2.0}, BOTH, {"b": -0.5, "a": 0.7}, A, {}, BOTH, B)
"""One process's jobs, in this order."""


def test_swapped_adapters_give_the_bits_of_diffusers_and_compile_nothing(folder_of: Any, folder: Path) -> None:
    role = Role(folder_of(MODEL), folder)
    before = compiled_count()
    assert before > 0
    made: list[Array] = []
    for number, use in enumerate(SWAPPED):
        made.append(role.made(use))
        extra = int(any(len(one) > 1 for one in SWAPPED[: number + 1]))
        assert compiled_count() == before + extra, f"job {number}: only the first job of two adapters is compiled"
    first = {str(use): one for use, one in reversed([*zip(SWAPPED, made, strict=True)])}
    assert all(np.array_equal(first[str(use)], one) for use, one in zip(SWAPPED, made, strict=True))
    assert len({one.tobytes() for one in made}) == len(first) == 7
    for use, one in [*zip(SWAPPED, made, strict=True)][1:6]:
        torch._dynamo.reset()
        assert np.array_equal(one, of_diffusers(folder_of(MODEL), folder, use)), use


def test_slots_outlive_the_adapters_that_were_in_them(folder_of: Any, folder: Path) -> None:
    """Adapters that are dropped after each job, and a role one of whose models was loaded anew."""
    role = Role(folder_of(MODEL), folder, adapter_bytes_max=0)
    before = compiled_count()
    made = [role.made(use) for use in (A, B, {}, A)]
    role.stage._loaded()
    made += [role.made(use) for use in (B, {}, A)]
    assert compiled_count() == before
    assert np.array_equal(made[0], made[3])
    assert all(np.array_equal(*pair) for pair in zip(made[:3], (made[6], made[4], made[5]), strict=True))
    assert role.stage._adapters.loaded_bytes == 0


def test_a_job_of_three_adapters_adds_a_slot(folder_of: Any, folder: Path) -> None:
    role = Role(folder_of(MODEL), folder)
    three = {"b": 0.5, "few": 2.0, "a": 0.7}
    jobs: list[Use] = [A, three, A, {}]
    made = [role.made(use) for use in jobs]
    after = compiled_count()
    assert all(np.array_equal(role.made(use), one) for use, one in zip(jobs, made, strict=True))
    assert compiled_count() == after
    assert np.array_equal(made[0], made[2])
    torch._dynamo.reset()
    assert np.array_equal(made[1], of_diffusers(folder_of(MODEL), folder, three))


@pytest.mark.parametrize("name", ["wide", "dora"])
def test_what_fits_no_slot_is_compiled_and_leaves_the_slots_as_they_were(
    name: str, folder_of: Any, folder: Path, caplog: Any
) -> None:
    role = Role(folder_of(MODEL), folder)
    others: list[Use] = [A, {}, B]
    made = [role.made(use) for use in others]
    before = compiled_count()
    with caplog.at_level(logging.WARNING):
        own = role.made({name: 1.0})
        mixed = role.made({"b": 0.5, name: 1.0})
    assert compiled_count() > before
    assert f"the compiled transformer is compiled again for the adapter '{name}'" in caplog.text
    assert all(np.array_equal(role.made(use), one) for use, one in zip(others, made, strict=True))
    torch._dynamo.reset()
    assert np.array_equal(own, of_diffusers(folder_of(MODEL), folder, {name: 1.0}, rank=None))
    assert not np.array_equal(mixed, own)
    np.testing.assert_allclose(mixed, eager(folder_of(MODEL), folder, {"b": 0.5, name: 1.0}), atol=1e-4)


def test_compiled_by_inductor_they_give_the_bits_of_diffusers(folder_of: Any, folder: Path) -> None:
    if shutil.which("g++") is None:
        needs.skip("there is no g++, which torch.compile needs on a CPU")
    compiled = {"backend": "inductor", "fullgraph": True}
    role = Role(folder_of(MODEL), folder, **compiled)
    before = compiled_count()
    role.made(A)
    made = role.made(B)
    assert compiled_count() == before
    torch._dynamo.reset()
    assert np.array_equal(made, of_diffusers(folder_of(MODEL), folder, B, **compiled))
    np.testing.assert_allclose(made, eager(folder_of(MODEL), folder, B), atol=1e-4)


def test_a_registry_with_other_adapters_gives_the_same_bits(folder_of: Any, folder: Path, tmp_path: Path) -> None:
    """Slots have layers for all adapters of a registry; those that a job leaves alone add zeros."""
    (tmp_path / "few.safetensors").symlink_to(folder / "few.safetensors")
    small = Role(folder_of(MODEL), tmp_path).made({"few": 1.0})
    torch._dynamo.reset()
    assert np.array_equal(small, Role(folder_of(MODEL), folder).made({"few": 1.0}))


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (components(transformer={"offload": {}, "compile": {"adapter_rank": 4}}), "0 beside offload"),
        (components(transformer={"device_map": "auto", "compile": {"adapter_rank": 4}}), "0 beside device_map"),
        (components(transformer={"compile": {"adapter_rank": -1}}), "0 to 4096"),
    ],
)
def test_means_that_leave_no_place_for_slots_are_refused(tables: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match="adapter_rank") as refused:
        of_tables(tables)
    assert named in str(refused.value)


def test_a_model_that_takes_no_adapters_in_place_is_refused(folder_of: Any) -> None:
    whole, _model = opened(folder_of(MODEL))
    means = of_tables(components(text_encoder={"compile": {"what": "whole", "adapter_rank": 4}}))
    with pytest.raises(InvalidRequest, match="diffusers swaps no adapters into a"):
        Stage.load(whole, ROLES[0], means=means)


def test_more_sizes_are_compiled_than_torch_keeps_by_itself() -> None:
    layer = torch.nn.Linear(2, 2)
    compiling.apply("compile", layer, Compile(what="whole", backend="aot_eager", fullgraph=True, dynamic=False))
    with torch.no_grad():
        for rows in range(1, 13):
            layer(torch.zeros(rows, 2))
    assert compiled_count() == 12
