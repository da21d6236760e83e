"""IP-Adapters: diffusers' bits alone, in groups and beside a LoRA; nothing is left for the next job; refusals."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters import loras
from tests.families import ip_adapters, monolith
from tests.families.cases import PROMPT, Case, picture
from tests.families.requests import request_of
from triptych.config import WorkerConfig
from triptych.errors import InvalidRequest
from triptych.stages.adapters import Registry
from triptych.stages.whole import Whole
from triptych_client.fused import FusedModel

FAMILY = "stable-diffusion-xl"
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2}
PLAIN = Case(FAMILY, "text2image", SIZE)
ONE = Case(FAMILY, "one", {**SIZE, "ip_adapter_image": picture(seed=1)}, adapters=(("look", 0.75),))
WEAK = replace(ONE, adapters=(("look", 0.25),))
OTHER = replace(ONE, adapters=(("face", 0.75),))
PICTURES = [picture(seed=1), picture(seed=2)]
BOTH = Case(FAMILY, "two", {**SIZE, "ip_adapter_image": PICTURES}, adapters=(("look", 0.5), ("face", -1.0)))
WITH_LORA = replace(ONE, adapters=(("style", 0.5), ("look", 0.75)))
CASES = [PLAIN, ONE, WEAK, OTHER, BOTH, WITH_LORA]


class Bench:
    """A model with two IP-Adapters and a LoRA."""

    def __init__(self, folder: str, registry: Path) -> None:
        self.folder, self.registry = folder, registry
        pipeline = loras.whole(folder)
        for number, name in enumerate(("look", "face")):
            loras.save(registry / f"{name}.safetensors", ip_adapters.tensors(pipeline, number))
        loras.save(registry / "style.safetensors", loras.tensors(pipeline, "unet"))
        self.alone = functools.cache(self._alone)

    def fresh(self, bytes_max: int = 2**32) -> FusedModel:
        config = WorkerConfig(model=self.folder, threads=1, adapters=str(self.registry), adapter_bytes_max=bytes_max)
        return FusedModel.load(config)

    def _alone(self, number: int) -> Any:
        """What diffusers itself makes of a job."""
        case = CASES[number]
        pipeline = monolith.load(self.folder)
        style = [weight for name, weight in case.adapters if name == "style"]
        pictures = [one for one in case.adapters if one[0] != "style"]
        if style:
            pipeline.load_lora_weights(str(self.registry / "style.safetensors"), adapter_name="style")
            pipeline.set_adapters(["style"], style)
        if pictures:
            names = [f"{name}.safetensors" for name, _weight in pictures]
            pipeline.load_ip_adapter(str(self.registry), subfolder="", weight_name=names)
            pipeline.set_ip_adapter_scale([weight for _name, weight in pictures])
        return loras.result(pipeline, prompt=PROMPT, **case.arguments)


@pytest.fixture(scope="module")
def bench(family_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(family_folder(FAMILY), tmp_path_factory.mktemp("ip-adapters"))


def run(model: FusedModel, case: Case) -> Any:
    (value,) = model.run(request_of(case)).values()
    return loras.as_array(value[0])  # type: ignore[index]


def test_each_has_an_effect_by_itself(bench: Bench) -> None:
    """Without this the test below would prove nothing."""
    results = [bench.alone(number) for number in range(len(CASES))]
    for number, one in enumerate(results):
        assert not any(np.array_equal(one, other) for other in results[:number])


@settings(max_examples=4, deadline=None)
@given(
    jobs=st.lists(st.integers(0, len(CASES) - 1), min_size=3, max_size=5),
    bytes_max=st.sampled_from([0, 60_000, 2**32]),
)
def test_random_jobs_in_a_row_are_each_as_in_diffusers_alone(bench: Bench, jobs: list[int], bytes_max: int) -> None:
    """With room for no adapter between jobs, for some, and for all."""
    model = bench.fresh(bytes_max)
    for number in (*jobs, 0):
        assert np.array_equal(run(model, CASES[number]), bench.alone(number)), CASES[number]


def test_a_picture_and_an_adapter_belong_together(bench: Bench) -> None:
    model = bench.fresh()
    for case, sentence in (
        (replace(ONE, arguments=SIZE), r"inputs\.ip_adapter_image is 'nothing'; accepted: a picture for each of look"),
        (replace(ONE, adapters=()), "adapters is 'none'; accepted: an IP-Adapter"),
        (replace(BOTH, adapters=(("look", 1.0),)), "ip_adapter_image"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            run(model, case)
        assert np.array_equal(run(model, PLAIN), bench.alone(0))


BROKEN: dict[str, tuple[Callable[[loras.Tensors], loras.Tensors], str]] = {
    "lacking": (lambda made: _without(made, "image_proj.norm.weight"), "image_proj has .* numbers, and not"),
    "left over": (lambda made: {**made, "ip_adapter.99.to_k_ip.weight": torch.zeros(2)}, "ip_adapter has .* numbers"),
    "widths": (
        lambda made: {**made, "image_proj.proj.weight": made["image_proj.proj.weight"][:, :-1].contiguous()},
        "another image encoder than one of width 32",
    ),
    "a LoRA inside": (lambda made: {**made, "ip_adapter.0.to_k_lora.up.weight": torch.zeros(2, 2)}, "Face ID"),
    "layers": (lambda made: {name: one[:-4].contiguous() for name, one in made.items()}, "diffusers can't load it"),
}


def _without(made: loras.Tensors, name: str) -> loras.Tensors:
    return {key: one for key, one in made.items() if key != name}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_told_at_the_start(kind: str, bench: Bench, tmp_path: Path) -> None:
    change, sentence = BROKEN[kind]
    made = ip_adapters.tensors(loras.whole(bench.folder))
    loras.save(tmp_path / "bad.safetensors", change(made))
    loras.save(tmp_path / "good.safetensors", made)
    registry = Registry.open(Whole.open(bench.folder), str(tmp_path))
    described = {one.name: one for one in registry.described}
    assert list(registry.files) == ["good"]
    assert list(described["good"].components) == ["unet"]
    assert re.search(sentence, described["bad"].unusable)


def test_a_family_without_such_blocks_says_so(
    bench: Bench, family_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """Also one whose class has diffusers' loader, and whose blocks take no picture for it."""
    loras.save(tmp_path / "look.safetensors", ip_adapters.tensors(loras.whole(bench.folder)))
    for family in ("stable-diffusion-3", "wan"):
        (described,) = Registry.open(Whole.open(family_folder(family)), str(tmp_path)).described
        assert described.unusable == "it is an IP-Adapter, and this pipeline takes none"
