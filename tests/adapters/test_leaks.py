"""No adapter leaks from one job into the next: each job gives the bits that a fresh stage gives for it alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters import loras
from triptych.errors import AdapterMissing, JobCancelled
from triptych.model.adapters import used
from triptych.model.inputs import SETTINGS, resolve
from triptych.stages.adapters import Registry
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import Adapter, GenerationRequest

NAMES = ("a", "b", "c")
Job = tuple[tuple[str, float], ...]
JOBS: list[Job] = [
    (),
    (("a", 0.5),),
    (("a", -1.25),),
    (("b", 0.5),),
    (("c", 0.0),),
    (("a", 0.5), ("b", -1.25)),
    (("c", 1.0), ("a", 0.5)),
]
"""The adapters of one job, in order, with their weights."""


class Bench:
    """One role of a model with three adapters, and the inputs of a job for it."""

    def __init__(self, folder: str, registry: Path, role: Any, components: tuple[str, ...], **size: int) -> None:
        self.whole = Whole.open(folder)
        self.role = role
        pipeline = loras.whole(folder)
        for number, name in enumerate(NAMES):
            parts = [loras.tensors(pipeline, component, rank=1 + number, seed=number) for component in components]
            loras.save(registry / f"{name}.safetensors", *parts)
        self.registry = Registry.open(self.whole, str(registry))
        self.description = describe(self.whole, self.registry.described)
        request = GenerationRequest(prompt=loras.PROMPT, seed=loras.SEED, num_inference_steps=1, **size)
        self._inputs: Mapping[str, object] = resolve(request, self.description).for_encoder()
        if role == ROLE_TRANSFORMER:
            self._inputs = _run(Stage.load(self.whole, ROLE_ENCODER), self._inputs)
        self.solo = functools.cache(lambda job: self.run(self.fresh(), job))

    def fresh(self, bytes_max: int = 2**32) -> Stage:
        return Stage.load(self.whole, self.role, adapters=self.registry.files, adapter_bytes_max=bytes_max)

    def inputs(self, job: Job) -> dict[str, object]:
        request = GenerationRequest(adapters=[Adapter(name=name, weight=weight) for name, weight in job])
        items = [list(one) for one in used(request, self.description)]
        asked: Any = self._inputs[SETTINGS]
        return {**self._inputs, SETTINGS: {**asked, "adapters": items}}

    def run(self, stage: Stage, job: Job) -> list[torch.Tensor]:
        made = _run(stage, self.inputs(job))
        return [value for _name, value in sorted(made.items()) if isinstance(value, torch.Tensor)]


def _run(stage: Stage, inputs: Mapping[str, object]) -> dict[str, object]:
    return stage.run(inputs, lambda _step: None, lambda: False)


@pytest.fixture(scope="module")
def denoiser(family_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    registry = tmp_path_factory.mktemp("adapters")
    size = {"height": 16, "width": 16, "num_frames": 3}
    return Bench(family_folder("wan"), registry, ROLE_TRANSFORMER, ("transformer",), **size)


@pytest.fixture(scope="module")
def encoder(family_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    registry = tmp_path_factory.mktemp("adapters")
    components = ("text_encoder", "text_encoder_2", "unet")
    return Bench(family_folder("stable-diffusion-xl"), registry, ROLE_ENCODER, components, height=32, width=32)


@pytest.mark.parametrize("bench", ["denoiser", "encoder"])
@settings(max_examples=8, deadline=None)
@given(jobs=st.lists(st.sampled_from(JOBS), min_size=3, max_size=6), bytes_max=st.sampled_from([0, 12_000, 2**32]))
def test_random_jobs_in_a_row_are_each_as_alone(
    bench: str, jobs: list[Job], bytes_max: int, request: pytest.FixtureRequest
):
    """With room for no adapter between jobs, for one or two, and for all."""
    tried: Bench = request.getfixturevalue(bench)
    stage = tried.fresh(bytes_max)
    for job in jobs:
        made = tried.run(stage, job)
        assert made
        assert all(map(torch.equal, made, tried.solo(job))), job


@pytest.mark.parametrize("bench", ["denoiser", "encoder"])
def test_adapters_have_an_effect_by_themselves(bench: str, request: pytest.FixtureRequest):
    """Without this the test above would prove nothing."""
    tried: Bench = request.getfixturevalue(bench)
    results = [tried.solo(job) for job in JOBS if job != (("c", 0.0),)]
    for number, one in enumerate(results):
        assert not any(all(map(torch.equal, one, other)) for other in results[:number])


def test_the_models_own_weights_stay(denoiser: Bench):
    """Each parameter, after jobs with adapters and after one that was cancelled in the middle."""
    stage = denoiser.fresh()
    model = stage._pipeline._role_components.get("transformer")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    denoiser.run(stage, (("a", 0.5), ("c", -1.25)))
    asked = iter([False])
    with pytest.raises(JobCancelled):
        stage.run(denoiser.inputs((("b", 0.5),)), lambda _step: None, lambda: next(asked, True))
    after = {
        name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(map(torch.equal, denoiser.run(stage, ()), denoiser.solo(())))


def test_what_is_loaded_is_bounded_by_bytes(denoiser: Bench):
    one = denoiser.fresh()
    denoiser.run(one, (("a", 0.5),))
    size_bytes = one._adapters.loaded_bytes
    assert size_bytes > 0
    stage = denoiser.fresh(size_bytes)
    denoiser.run(stage, (("a", 0.5),))
    assert stage._adapters.loaded_bytes == size_bytes
    denoiser.run(stage, (("c", 0.5), ("a", 0.5)))  # c alone is larger, and was used less recently than a
    assert stage._adapters.loaded_bytes == size_bytes
    assert denoiser.fresh(0)._adapters.loaded_bytes == 0


def test_other_files_under_a_name_are_refused(denoiser: Bench, tmp_path: Path):
    """The job keeps the digest that it was accepted with, and a worker with other files leaves it to others."""
    folder = tmp_path / "adapters"
    path = loras.save(folder / "a.safetensors", loras.tensors(loras.whole(denoiser.whole.model), "transformer", seed=9))
    registry = Registry.open(denoiser.whole, str(folder))
    stage = Stage.load(denoiser.whole, ROLE_TRANSFORMER, adapters=registry.files)
    with pytest.raises(AdapterMissing, match=f"'a' has digest {registry.files['a'].digest[:12]} here"):
        denoiser.run(stage, (("a", 0.5),))
    with pytest.raises(AdapterMissing, match="'b' isn't in this worker's registry"):
        denoiser.run(stage, (("b", 0.5),))
    inputs = denoiser.inputs(())
    settings: Any = inputs[SETTINGS]
    described = describe(denoiser.whole, registry.described)
    own = [list(one) for one in used(GenerationRequest(adapters=[Adapter(name="a")]), described)]
    changed = {**inputs, SETTINGS: {**settings, "adapters": own}}
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(AdapterMissing, match="were changed"):
        _run(stage, changed)
    assert all(map(torch.equal, denoiser.run(stage, ()), denoiser.solo(())))
