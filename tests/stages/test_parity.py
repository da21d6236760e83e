"""Three stages in a row give the bits of diffusers' own pipelines, for families that the code never names."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from google.protobuf import json_format

from tests.stages.conftest import assert_equal_bits, picture, run_stages
from triptych.model.inputs import resolve
from triptych.stages import Step
from triptych.transport import codec
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.room_pb2 import Manifest

BASE = {"prompt": "a big red circle", "negative_prompt": "blur", "height": 32, "width": 64, "num_inference_steps": 3}

CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wan": ("wan_t2v", {"num_frames": 5, "guidance_scale": 3.5}, False),
    "wan modular layout": ("wan_t2v:modular", {"num_frames": 5, "guidance_scale": 3.5}, False),
    "wan default guidance": ("wan_t2v", {"num_frames": 3}, False),
    "qwen": ("qwen_image", {"guidance_scale": 2.5}, False),
    "qwen image to image": ("qwen_image", {"guidance_scale": 2.5}, True),
    "qwen two outputs": ("qwen_image", {"num_outputs": 2}, False),
    "sd3": ("sd3", {"guidance_scale": 5.0}, False),
    "sd3 image to image": ("sd3", {"guidance_scale": 5.0, "parameters": {"strength": 0.7}}, True),
    "ltx": ("ltx_image", {"num_frames": 5, "guidance_scale": 3.0}, False),
    "ltx image": ("ltx_image", {"num_frames": 5, "guidance_scale": 3.0}, True),
}


def request_of(fields: dict[str, Any], seed: int = 7) -> GenerationRequest:
    return json_format.ParseDict({**BASE, "seed": seed, **fields}, GenerationRequest())


def stage_inputs(model: Any, fields: dict[str, Any], with_image: bool, seed: int = 7) -> dict[str, object]:
    values = resolve(request_of(fields, seed), model.description).for_encoder()
    return {**values, "image": picture()} if with_image else values


def pipeline_arguments(fields: dict[str, Any], with_image: bool) -> dict[str, Any]:
    """The same request as arguments of diffusers' pipelines, without guidance."""
    arguments = {**BASE, **fields, **fields.get("parameters", {})}
    for name in ("parameters", "guidance_scale", "num_outputs"):
        arguments.pop(name, None)
    if "num_outputs" in fields:
        arguments["num_images_per_prompt"] = fields["num_outputs"]
    return {**arguments, "image": picture()} if with_image else arguments


def run_modular(folder: str, fields: dict[str, Any], with_image: bool, output: str, seed: int = 7) -> Any:
    """diffusers' own `ModularPipeline`, whole, in one process."""
    pipeline = diffusers.ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=torch.float32)
    if "guidance_scale" in fields:
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=fields["guidance_scale"]))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(**pipeline_arguments(fields, with_image), generator=generator, output=output)


@pytest.mark.parametrize("case", CASES)
def test_stages_equal_modular_pipeline(case: str, model: Any) -> None:
    name, fields, with_image = CASES[case]
    tiny = model(name)
    outputs = run_stages(tiny.stages, stage_inputs(tiny, fields, with_image))
    assert list(outputs) == list(tiny.description.outputs)
    (output,) = outputs
    assert_equal_bits(outputs[output], run_modular(tiny.folder, fields, with_image, output))


@pytest.mark.parametrize("case", CASES)
def test_stages_equal_through_codec(case: str, model: Any) -> None:
    """What crosses is bytes; nothing else of a stage's result reaches the next."""
    name, fields, with_image = CASES[case]
    tiny = model(name)
    direct = run_stages(tiny.stages, stage_inputs(tiny, fields, with_image))
    values = stage_inputs(tiny, fields, with_image)
    for stage in tiny.stages:
        values = through_bytes(stage.run(values, ignore, lambda: False))
    (output,) = direct
    assert_equal_bits(values[output], direct[output])


CLASSIC: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wan": ("wan", "WanPipeline", {"guidance_scale": 3.5, "output_type": "np"}),
    "qwen": ("qwen", "QwenImagePipeline", {"true_cfg_scale": 2.5}),
    "sd3": ("sd3", "StableDiffusion3Pipeline", {"guidance_scale": 5.0}),
    "sd3 image to image": ("sd3 image to image", "StableDiffusion3Img2ImgPipeline", {"guidance_scale": 5.0}),
    "ltx": ("ltx", "LTXPipeline", {"guidance_scale": 3.0, "output_type": "np"}),
    "ltx image": ("ltx image", "LTXImageToVideoPipeline", {"guidance_scale": 3.0, "output_type": "np"}),
}


CLASSIC_DIFFERS = ("ltx", "ltx image")
"""Here diffusers' own two pipelines differ in the last bits: the classic one runs both branches of guidance as one
batch, the modular one each by itself. The modular one is the reference."""


@pytest.mark.parametrize("case", CLASSIC)
def test_stages_equal_classic_pipeline(case: str, model: Any) -> None:
    ours, classic = both(case, {}, model)
    if case in CLASSIC_DIFFERS:
        np.testing.assert_allclose(ours, classic, atol=1e-5)
    else:
        assert_equal_bits(ours, classic)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("case", CLASSIC)
def test_without_guidance_stages_equal_classic_pipeline(case: str, scale: float, model: Any) -> None:
    """In all of them: there is one branch. `tests/families` tries more."""
    assert_equal_bits(*both(case, {"guidance_scale": scale}, model))


def both(case: str, changed: dict[str, Any], model: Any) -> tuple[Any, Any]:
    """What the stages make of a case, and what the classic pipeline does."""
    key, class_name, extra = CLASSIC[case]
    name, fields, with_image = CASES[key]
    tiny, fields = model(name), {**fields, **changed}
    (output,) = run_stages(tiny.stages, stage_inputs(tiny, fields, with_image)).values()
    pipeline = getattr(diffusers, class_name).from_pretrained(tiny.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(7)
    scales = {scale: changed.get("guidance_scale", extra[scale]) for scale in extra if scale.endswith("_scale")}
    arguments = pipeline_arguments(fields, with_image) | extra | scales
    return output, pipeline(**arguments, generator=torch.Generator().manual_seed(7))[0]


def ignore(step: Step) -> None:
    """An `on_step` for who doesn't care."""


def through_bytes(values: dict[str, object]) -> dict[str, object]:
    """Encodes values to bytes and decodes those bytes alone."""
    manifest, room = to_bytes(values)
    return codec.decode(Manifest.FromString(manifest), memoryview(bytearray(room)))


def to_bytes(values: dict[str, object]) -> tuple[bytes, bytes]:
    """A serialized manifest, and the tensors' bytes behind each other."""
    encoded = codec.encode(values, "job")
    room = bytearray()
    for ref, buffer in zip(encoded.manifest.tensors, encoded.buffers, strict=True):
        room.extend(bytes(-len(room) % 64))
        ref.offset_bytes = len(room)
        room.extend(buffer.cast("B"))
    return encoded.manifest.SerializeToString(), bytes(room)
