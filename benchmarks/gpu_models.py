"""Models of full size with random weights, written as folders that any pipeline of diffusers loads, without a hub.

A model is laid out on the meta device, and its weights are drawn tensor by tensor on the device and written in shards,
so that one shard has to fit, not the model. Time and memory of a pipeline don't depend on what its weights are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from tests.families.texts import chat_tokenizer
from tests.models import t5_tokenizer

SHARD_BYTES = 4 << 30
DTYPE = torch.bfloat16
_NORM_SUFFIXES = ("weight", "gamma")


@dataclass(frozen=True)
class Request:
    """What one job asks for."""

    height: int
    width: int
    steps: int
    frames: int = 0

    @property
    def fields(self) -> dict[str, int]:
        """By the names of the pipelines' inputs."""
        named = {"height": self.height, "width": self.width, "num_inference_steps": self.steps}
        return {**named, "num_frames": self.frames} if self.frames else named


@dataclass(frozen=True)
class Architecture:
    """A model's parts at one size. `layers` is the number of the denoiser's blocks."""

    name: str
    pipeline: str
    layers: int
    request: Request
    parts: Callable[[int], Mapping[str, Any]]
    """Models on the meta device, tokenizers and schedulers by component, for a number of layers."""


def full() -> tuple[Architecture, ...]:
    """As published. Sizes that don't stand here are the defaults of the classes."""
    return (
        Architecture("Wan 2.1 1.3B", "WanPipeline", 30, Request(480, 832, 20, 81), _wan_full),
        Architecture("Qwen-Image", "QwenImagePipeline", 60, Request(928, 1664, 20), _qwen_full),
    )


def tiny() -> tuple[Architecture, ...]:
    """The same classes at toy sizes, for machines without a device."""
    return (
        Architecture("Wan 2.1, tiny", "WanPipeline", 2, Request(64, 64, 4, 9), _wan_tiny),
        Architecture("Qwen-Image, tiny", "QwenImagePipeline", 2, Request(64, 64, 4), _qwen_tiny),
    )


def _wan_full(layers: int) -> Mapping[str, Any]:
    t5 = transformers.UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    return _wan(
        t5,
        diffusers.AutoencoderKLWan,
        lambda: diffusers.WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=layers),
    )


def _wan_tiny(layers: int) -> Mapping[str, Any]:
    t5 = transformers.UMT5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return _wan(
        t5,
        lambda: diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1),
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=32, ffn_dim=64, text_dim=32, freq_dim=32, num_layers=layers
        ),
    )


def _wan(t5: Any, vae: Callable[[], Any], transformer: Callable[[], Any]) -> Mapping[str, Any]:
    with torch.device("meta"):
        models = {"text_encoder": transformers.UMT5EncoderModel(t5), "vae": vae(), "transformer": transformer()}
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return {**models, "tokenizer": t5_tokenizer(), "scheduler": scheduler}


def _qwen_full(layers: int) -> Mapping[str, Any]:
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_scaling": rope,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return _qwen(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision),
        diffusers.AutoencoderKLQwenImage,
        lambda: diffusers.QwenImageTransformer2DModel(num_layers=layers),
    )


def _qwen_tiny(layers: int) -> Mapping[str, Any]:
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 320,
        "rope_scaling": rope,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    return _qwen(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision),
        lambda: diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1),
        lambda: diffusers.QwenImageTransformer2DModel(
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=32,
            joint_attention_dim=32,
            axes_dims_rope=(8, 12, 12),
        ),
    )


def _qwen(config: Any, vae: Callable[[], Any], transformer: Callable[[], Any]) -> Mapping[str, Any]:
    with torch.device("meta"):
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
        models = {"text_encoder": encoder, "vae": vae(), "transformer": transformer()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
    return {**models, "tokenizer": chat_tokenizer(), "scheduler": scheduler}


def parameter_bytes(architecture: Architecture, layers: int) -> int:
    """Bytes of all parameters in `DTYPE`."""
    models = [part for part in architecture.parts(layers).values() if isinstance(part, torch.nn.Module)]
    return sum(parameter.numel() for model in models for parameter in model.parameters()) * DTYPE.itemsize


def layers_that_fit(architecture: Architecture, bytes_max: float) -> int:
    """The full number of the denoiser's blocks, or as many as fit into `bytes_max`; at least one."""
    one, two = parameter_bytes(architecture, 1), parameter_bytes(architecture, 2)
    fitting = 1 + int((bytes_max - one) // (two - one))
    return max(1, min(architecture.layers, fitting))


def write(architecture: Architecture, layers: int, folder: Path, device: torch.device) -> None:
    """The model's folder, with weights in `DTYPE`, the same for the same seed and device."""
    parts = architecture.parts(layers)
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, Any] = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
        if isinstance(part, torch.nn.Module):
            _save_model(part, folder / name, generator)
        else:
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))


def _save_model(model: Any, folder: Path, generator: torch.Generator) -> None:
    folder.mkdir(parents=True)
    if isinstance(model, diffusers.ModelMixin):
        model.save_config(folder)
        stem = "diffusion_pytorch_model"
    else:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        stem = "model"
    shards = _shards(model)
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _drawn(name, shape, generator).to("cpu") for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shapes, file))
    size_bytes = sum(parameter.numel() for parameter in model.parameters()) * DTYPE.itemsize
    index = {"metadata": {"total_size": size_bytes}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _shards(model: torch.nn.Module) -> list[dict[str, torch.Size]]:
    """Which parameters go into which file, with their shapes; of tied ones the first name alone."""
    shards: list[dict[str, torch.Size]] = [{}]
    room_bytes = SHARD_BYTES
    for name, parameter in model.named_parameters():
        size_bytes = parameter.numel() * DTYPE.itemsize
        if shards[-1] and size_bytes > room_bytes:
            shards.append({})
            room_bytes = SHARD_BYTES
        shards[-1][name] = parameter.shape
        room_bytes -= size_bytes
    return shards


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Vectors are a norm's, and 1, or a bias, and 0. Matrices keep the variance of what they are applied to, so that
    activations stay finite: their own is 1 / fan-in (LeCun et al., Efficient BackProp, 1998)."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith(_NORM_SUFFIXES)), dtype=DTYPE)
    spread = shape[1:].numel() ** -0.5
    return torch.empty(shape, dtype=DTYPE, device=generator.device).normal_(0, spread, generator=generator)
