"""IP-Adapters made from a seed, as files of the usual form, and the registries of models that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from tests.families.cases import Case, cases_of

_TOKENS = 4
"""Of the plain form of such adapters, by which diffusers knows it."""
Tensors = dict[str, torch.Tensor]


def tensors(pipeline: Any, seed: int = 0) -> Tensors:
    """A plain IP-Adapter for the pipeline's denoiser and image encoder."""
    drawn = torch.Generator().manual_seed(seed)
    unet = pipeline.unet
    context = unet.config.cross_attention_dim
    width = pipeline.image_encoder.config.projection_dim
    found = {
        "image_proj.proj.weight": torch.randn(_TOKENS * context, width, generator=drawn),
        "image_proj.proj.bias": torch.randn(_TOKENS * context, generator=drawn),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    for number, name in enumerate(unet.attn_processors):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        if name.endswith("attn2.processor"):
            for part in ("to_k_ip", "to_v_ip"):
                shape = getattr(layer, part.removesuffix("_ip")).weight.shape
                found[f"ip_adapter.{number}.{part}.weight"] = torch.randn(shape, generator=drawn)
    return found


def registry(model: str, case: Case) -> Path:
    """The folder of the adapters of a case's family, beside its model; empty where none of its jobs has one."""
    folder = Path(model).with_name(f"{Path(model).name}-adapters")
    names = dict.fromkeys(name for one in cases_of(case.family) for name, _weight in one.adapters)
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            pipeline = diffusers.ModularPipeline.from_pretrained(model)
            pipeline.load_components(names=["unet", "image_encoder"], dtype=torch.float32)
            save_file(tensors(pipeline, number), path)
    return folder


def load(pipeline: Any, model: str, case: Case) -> None:
    """Load the job's adapters into diffusers' own pipeline, by its own calls."""
    if not case.adapters:
        return
    folder = registry(model, case)
    names = [f"{name}.safetensors" for name, _weight in case.adapters]
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=names)
    pipeline.set_ip_adapter_scale([weight for _name, weight in case.adapters])
