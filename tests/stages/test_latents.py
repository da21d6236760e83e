"""What a decoder hands out: latents as arrays and never as a picture by their shape, videos at their model's rate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.stages.conftest import FAMILIES
from tests.stages.test_parity import ignore, request_of, stage_inputs
from triptych.config import WorkerConfig
from triptych.errors import InvalidRequest
from triptych.media import encoding
from triptych.model.inputs import resolve
from triptych_client.fused import FusedModel

LATENT: dict[str, Any] = {"parameters": {"output_type": "latent"}}


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_an_array_of_what_the_transformer_left(name: str, model: Any) -> None:
    tiny = model(name)
    fields = {**LATENT, **({"num_frames": 5} if tiny.description.frame_multiple else {})}
    values = stage_inputs(tiny, fields, False)
    denoised = tiny.stages[1].run(tiny.stages[0].run(values, ignore, lambda: False), ignore, lambda: False)
    outputs = tiny.stages[2].run(denoised, ignore, lambda: False)
    assert list(outputs) == ["latents"]
    (file,) = encoding.encode_outputs(outputs, "", 16)
    assert (file.name, file.media_type) == ("latents.npy", "application/x-npy")
    assert np.array_equal(np.load(io.BytesIO(file.data)), denoised["latents"].numpy())


def test_latents_are_no_picture_and_other_types_are_named(model: Any) -> None:
    description = model("sd3").description
    resolve(request_of({**LATENT, "output_format": "npy"}), description)
    with pytest.raises(InvalidRequest, match="output_format is 'png'; accepted: npy, safetensors, or nothing"):
        resolve(request_of({**LATENT, "output_format": "png"}), description)
    with pytest.raises(InvalidRequest, match="output_type is 'latents'; accepted: pil, np, pt, latent"):
        resolve(request_of({"parameters": {"output_type": "latents"}}), description)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_classes_and_flags_are_no_pictures(dtype: torch.dtype) -> None:
    (file,) = encoding.encode_outputs({"images": torch.ones(1, 3, 4, 4, dtype=dtype)}, "", 16)
    assert file.name == "images.npy"


def test_a_video_plays_at_the_rate_that_its_model_was_told(folder_of: Any, tmp_path: Path) -> None:
    model = FusedModel.load(WorkerConfig(model=folder_of("ltx_image"), threads=1))
    for name, fields, rate in (
        ("told.mp4", {"parameters": {"frame_rate": 10}}, 10),
        ("field.mp4", {"frames_per_second": 12}, 12),
    ):
        (path,) = model.generate(request_of({"num_frames": 5, **fields}), tmp_path / name)
        with av.open(str(path)) as container:
            assert container.streams.video[0].average_rate == rate
