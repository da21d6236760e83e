"""Jobs with adapters give the bits of diffusers' own pipeline with the same adapters, for several families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.adapters import loras
from triptych.config import WorkerConfig
from triptych_client.fused import FusedModel
from triptych_client.request import build_request

PLAIN = {"height": 32, "width": 32, "num_inference_steps": 2}
"""For families that take no negative prompt: a request that names one is refused."""
PICTURE = {"negative_prompt": "blur", **PLAIN}
VIDEO = {**PICTURE, "num_frames": 5}


def fused(folder: str, registry: Path) -> FusedModel:
    return FusedModel.load(WorkerConfig(model=folder, threads=1, adapters=str(registry)))


def run(model: FusedModel, **fields: Any) -> Any:
    outputs = model.run(build_request(loras.PROMPT, seed=loras.SEED, **fields))
    (value,) = outputs.values()
    return loras.as_array(value[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("maker", "size", "scale"), [("wan_t2v", VIDEO, "guidance_scale"), ("qwen_image", PICTURE, "true_cfg_scale")]
)
def test_distilled_in_one_process(maker: str, size: dict[str, Any], scale: str, tmp_path: Path):
    """Four steps and no guidance. diffusers' pipelines call the scale by different names."""
    folder = getattr(models, maker)(tmp_path / "model")
    path = loras.save(tmp_path / "adapters" / "fast.safetensors", loras.tensors(loras.whole(folder), "transformer"))
    model = fused(folder, path.parent)
    fields = {**size, "num_inference_steps": loras.DISTILLED["num_inference_steps"]}
    with_it = run(model, adapters={"fast": 0.75}, **{**size, **loras.DISTILLED})
    assert np.array_equal(with_it, loras.classic(folder, [(path, 0.75)], **fields, **{scale: 1.0}))
    without = run(model, **{**size, **loras.DISTILLED})
    assert np.array_equal(without, loras.classic(folder, [], **fields, **{scale: 1.0}))
    assert not np.array_equal(with_it, without)


def test_two_at_once_are_added_in_their_order(family_folder: Callable[[str], str], tmp_path: Path):
    folder = family_folder("wan")
    pipeline = loras.whole(folder)
    first = loras.save(tmp_path / "first.safetensors", loras.tensors(pipeline, "transformer", rank=4, seed=1))
    second = loras.save(tmp_path / "second.safetensors", loras.tensors(pipeline, "transformer", rank=2, seed=2))
    model = fused(folder, tmp_path)
    made = run(model, adapters={"first": 0.5, "second": -1.25}, **VIDEO)
    assert np.array_equal(made, loras.monolith(folder, [(first, 0.5), (second, -1.25)], **VIDEO))
    turned = run(model, adapters={"second": -1.25, "first": 0.5}, **VIDEO)
    assert np.array_equal(turned, loras.monolith(folder, [(second, -1.25), (first, 0.5)], **VIDEO))


def test_files_of_other_tools_are_converted_as_diffusers_does(family_folder: Callable[[str], str], tmp_path: Path):
    folder = family_folder("wan")
    made = loras.tensors(loras.whole(folder), "transformer")
    loras.save(tmp_path / "ours.safetensors", made)
    theirs = loras.save(tmp_path / "theirs.safetensors", loras.as_original(made))
    model = fused(folder, tmp_path)
    by_theirs = run(model, adapters={"theirs": 1.0}, **VIDEO)
    assert np.array_equal(by_theirs, run(model, adapters={"ours": 1.0}, **VIDEO))
    assert np.array_equal(by_theirs, loras.monolith(folder, [(theirs, 1.0)], **VIDEO))


def test_two_denoisers_have_a_file_each(family_folder: Callable[[str], str], tmp_path: Path):
    folder = family_folder("Wan22ModularPipeline")
    pipeline = loras.whole(folder)
    high = loras.tensors(pipeline, "transformer", seed=1)
    low = {
        f"transformer.{name.partition('.')[2]}": tensor
        for name, tensor in loras.tensors(pipeline, "transformer_2", seed=2).items()
    }
    one = loras.save(tmp_path / "both" / "transformer.safetensors", high)
    other = loras.save(tmp_path / "both" / "transformer_2.safetensors", low)
    fields = {**VIDEO, "num_inference_steps": 4}
    made = run(fused(folder, tmp_path), adapters={"both": {"transformer": 0.5, "transformer_2": 2.0}}, **fields)
    pipeline.load_lora_weights(str(one), adapter_name="a")
    pipeline.load_lora_weights(str(other), adapter_name="a", load_into_transformer_2=True)
    pipeline.transformer.set_adapters(["a"], [0.5])
    pipeline.transformer_2.set_adapters(["a"], [2.0])
    assert np.array_equal(made, loras.result(pipeline, **fields))


@pytest.mark.parametrize(
    ("family", "components", "fields"),
    [
        ("stable-diffusion-xl", ["unet", "text_encoder", "text_encoder_2"], PICTURE),
        ("flux", ["transformer", "text_encoder"], PLAIN),
        ("stable-diffusion-3", ["transformer", "text_encoder"], PICTURE),
    ],
)
def test_text_encoders_and_denoisers_lie_in_different_roles(
    family: str, components: list[str], fields: dict[str, Any], family_folder: Callable[[str], str], tmp_path: Path
):
    folder = family_folder(family)
    pipeline = loras.whole(folder)
    parts = [loras.tensors(pipeline, name, seed=number) for number, name in enumerate(components)]
    assert all(parts)
    path = loras.save(tmp_path / "style.safetensors", *parts)
    made = run(fused(folder, tmp_path), adapters={"style": 0.5}, **fields)
    assert np.array_equal(made, loras.monolith(folder, [(path, 0.5)], **fields))
