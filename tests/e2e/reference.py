"""What diffusers itself makes of a request, in this process: the bits that the services must give."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch

from tests.e2e.conftest import SMALL
from triptych.config import WorkerConfig
from triptych_client.fused import FusedModel
from triptych_client.request import build_request

Array = np.ndarray[Any, Any]


def modular(folder: str, output: str, guidance_scale: float, **fields: Any) -> Array:
    """`ModularPipeline`, whole."""
    torch.set_num_threads(1)
    pipeline = diffusers.ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=torch.float32)
    pipeline.update_components(guider=pipeline.guider.new(guidance_scale=guidance_scale))
    arguments = {**SMALL, **fields}
    seed = arguments.pop("seed")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return as_array(pipeline(prompt="a big red circle", generator=generator, output=output, **arguments)[0])


def classic(folder: str, pipeline_class: str, **fields: Any) -> Array:
    """The classic pipeline, whole."""
    torch.set_num_threads(1)
    pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**SMALL, **fields}
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    return as_array(pipeline(prompt="a big red circle", generator=generator, **arguments)[0][0])


def fused(folder: str, **fields: Any) -> Array:
    """The three stages in a row in this process, as `--fused` runs them."""
    model = FusedModel.load(WorkerConfig(model=folder, threads=1))
    outputs = model.run(build_request("a big red circle", **{**SMALL, **fields}))
    (value,) = outputs.values()
    return as_array(value[0])  # type: ignore[index]


def as_array(value: Any) -> Array:
    """Pictures and frames as an array, without a change of value."""
    array = np.asarray(value)
    assert array.std() > 0, "a flat picture proves nothing"
    return array
