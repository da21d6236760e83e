"""Adapters made from a seed, and what diffusers itself makes of them: `ModularPipeline` in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

from triptych.stages.library_errors import is_installed

PROMPT = "a big red circle"
SEED = 7
DISTILLED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0}
"""How distilled adapters are used: few steps, and no guidance."""
HAS_PEFT = is_installed("peft")
Tensors = dict[str, torch.Tensor]


def whole(folder: str) -> Any:
    """The pipeline with all its weights."""
    torch.set_num_threads(1)
    pipeline = diffusers.ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=torch.float32)
    return pipeline


def tensors(pipeline: Any, component: str, rank: int = 2, seed: int = 0, strength: float = 0.5) -> Tensors:
    """Random layers for each linear layer of a component's attention, as diffusers names them."""
    drawn = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, module in getattr(pipeline, component).named_modules():
        if isinstance(module, torch.nn.Linear) and "attn" in name:
            stem = f"{component}.{name}"
            found[f"{stem}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=drawn)
            found[f"{stem}.lora_B.weight"] = strength * torch.randn(module.out_features, rank, generator=drawn)
    return found


def save(path: Path, *parts: Tensors) -> Path:
    """A file of all parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor for part in parts for name, tensor in part.items()}, path)
    return path


def as_original(peft: Tensors, component: str = "transformer") -> Tensors:
    """The same layers as the makers of Wan's tools write them: another prefix, and other names of attention."""
    names = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
    found = {}
    for key, tensor in peft.items():
        name = key.removeprefix(f"{component}.")
        for ours, theirs in names.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        found[f"diffusion_model.{name}"] = tensor
    return found


def monolith(folder: str, adapters: Sequence[tuple[Path, float]], **fields: Any) -> Any:
    """The result of diffusers' own pipeline with adapters, as an array."""
    pipeline = whole(folder)
    for number, (path, _weight) in enumerate(adapters):
        pipeline.load_lora_weights(str(path), adapter_name=f"a{number}")
    if adapters:
        pipeline.set_adapters([f"a{number}" for number in range(len(adapters))], [weight for _path, weight in adapters])
    return result(pipeline, **fields)


def result(pipeline: Any, prompt: str = PROMPT, **fields: Any) -> Any:
    """What a whole pipeline yields for a request."""
    torch.manual_seed(SEED)
    state = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(SEED), **fields)
    name = "videos" if state.get("videos") is not None else "images"
    return as_array(state.get(name)[0])


def classic(folder: str, adapters: Sequence[tuple[Path, float]], **fields: Any) -> Any:
    """The result of the pipeline that isn't modular: Wan's modular one fails in diffusers where guidance is off."""
    torch.set_num_threads(1)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for number, (path, _weight) in enumerate(adapters):
        pipeline.load_lora_weights(str(path), adapter_name=f"a{number}")
    if adapters:
        pipeline.set_adapters([f"a{number}" for number in range(len(adapters))], [weight for _path, weight in adapters])
    generator = torch.Generator().manual_seed(SEED)
    return as_array(pipeline(prompt=PROMPT, generator=generator, **fields)[0][0])


def as_array(value: Any) -> Any:
    """Pictures and frames as they are."""
    array = np.asarray(value)
    assert array.std() > 0, "a flat picture proves nothing"
    return array
