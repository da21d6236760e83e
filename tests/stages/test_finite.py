"""NaN and infinity end a job where they show first, with a sentence; a setting allows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from safetensors.torch import load_file, save_file

from services.worker.health import is_ours
from services.worker.places import place_of
from services.worker.report import reason_of
from triptych.config import WorkerConfig
from triptych.errors import NotFinite
from triptych.stages import finite
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client.fused import FusedModel

SMALL = {"prompt": "a", "height": 32, "width": 64, "num_inference_steps": 2, "seed": 7}


def spoiled(source: str, folder: Path, component: str, part: str, number: float) -> str:
    """A copy of a model with one number in the weights of a component, in the first tensor with `part` in its name."""
    shutil.copytree(source, folder)
    (file,) = (folder / component).glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in sorted(weights) if part in name)
    weights[name].view(-1)[0] = number
    save_file(weights, file, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "component", "part", "number", "sentence"),
    [
        ("wan_t2v", "vae", "decoder.conv_out.bias", float("nan"), "the decoder made NaN in videos"),
        ("qwen_image", "vae", "decoder.conv_out.bias", float("nan"), "the decoder made NaN in vae.decoder"),
        ("sd3", "vae", "decoder.conv_out.bias", float("inf"), "the decoder made infinity in vae.decoder"),
        ("sd3", "transformer", "proj_out.bias", float("nan"), "the transformer made NaN in latents"),
        ("wan_t2v", "text_encoder", "final_layer_norm.weight", float("nan"), "the encoder made NaN in prompt_embeds"),
    ],
)
def test_a_number_in_the_weights_that_is_none_ends_the_job(
    name: str, component: str, part: str, number: float, sentence: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    model = spoiled(folder_of(name), tmp_path / "model", component, part, number)
    fields = {**SMALL, "num_frames": 3} if name == "wan_t2v" else SMALL
    request = json_format.ParseDict(fields, GenerationRequest())
    with pytest.raises(NotFinite, match=f"^{sentence}; workers with nonfinite set to allow let that pass$"):
        FusedModel.load(WorkerConfig(model=model, threads=1)).run(request)
    assert FusedModel.load(WorkerConfig(model=model, threads=1, nonfinite="allow")).run(request)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64])
def test_every_dtype_is_looked_at(dtype: torch.dtype) -> None:
    values = torch.ones(3, 4).to(dtype)
    finite.check("decoder", {"values": values.T, "none": values[:0]})
    values[1, 2] = float("nan")
    with pytest.raises(NotFinite, match=r"NaN in values\.0\.a"):
        finite.check("decoder", {"values": [{"a": values}]})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_arrays_too_and_large_numbers_are_numbers(dtype: Any) -> None:
    values = np.full((2, 3), 60_000, dtype)  # a sum of these is too large for 16 bits
    finite.check("decoder", {"values": values, "words": np.ones(3, np.uint8), "none": values[:0]})
    values[0, 0] = np.inf
    with pytest.raises(NotFinite, match="infinity in values"):
        finite.check("decoder", {"values": values})


def test_masks_may_hold_infinity_and_no_nan() -> None:
    mask = torch.tensor([0.0, float("-inf")])
    finite.check("encoder", {"prompt_attention_mask": mask})
    with pytest.raises(NotFinite, match="NaN in prompt_attention_mask"):
        finite.check("encoder", {"prompt_attention_mask": mask * 0})


def test_it_is_no_machines_error_unless_it_comes_with_every_job() -> None:
    """So the second one ends its job (`repeats`), and a worker that makes it of all jobs is checked (`health`)."""
    with pytest.raises(NotFinite) as caught:
        finite.check("decoder", {"images": np.array([np.nan])})
    reason, message = reason_of(caught.value)
    assert reason == fleet_pb.FAILURE_REASON_STAGE_ERROR
    assert place_of(caught.value, message).startswith("NotFinite in finite.check #")
    assert is_ours(caught.value)
