"""Folders with the published configurations of large models, and no weights: facts of their repositories on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Config = dict[str, Any]

UMT5_XXL: Config = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False,
}
CLIP_H: Config = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
CLIP_PROCESSOR: Config = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}
VAE: Config = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
WAN: Config = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
WAN_IMAGE: Config = {**WAN, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
UNIPC: Config = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
}
QWEN_VL: Config = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "image_token_id": 151655,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
QWEN_IMAGE: Config = {
    "_class_name": "QwenImageTransformer2DModel",
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
FLOW_EULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}

_WAN_VAE = ("AutoencoderKLWan", VAE)
_WAN_PARTS: Mapping[str, tuple[str, Config]] = {
    "text_encoder": ("UMT5EncoderModel", UMT5_XXL),
    "tokenizer": ("T5TokenizerFast", {}),
    "vae": _WAN_VAE,
    "scheduler": ("UniPCMultistepScheduler", UNIPC),
    "transformer": ("WanTransformer3DModel", WAN),
}
_QWEN_PARTS: Mapping[str, tuple[str, Config]] = {
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration", QWEN_VL),
    "tokenizer": ("Qwen2Tokenizer", {}),
    "vae": ("AutoencoderKLQwenImage", VAE),
    "scheduler": ("FlowMatchEulerDiscreteScheduler", FLOW_EULER),
    "transformer": ("QwenImageTransformer2DModel", QWEN_IMAGE),
}
MODELS: Mapping[str, tuple[str, Config, Mapping[str, tuple[str, Config]]]] = {
    "Wan2.1-T2V-14B": ("WanPipeline", {}, _WAN_PARTS),
    "Wan2.1-I2V-14B": (
        "WanImageToVideoPipeline",
        {},
        {
            **_WAN_PARTS,
            "transformer": ("WanTransformer3DModel", WAN_IMAGE),
            "image_encoder": ("CLIPVisionModel", CLIP_H),
            "image_processor": ("CLIPImageProcessor", CLIP_PROCESSOR),
        },
    ),
    "Wan2.2-T2V-A14B": (
        "WanPipeline",
        {"boundary_ratio": 0.875},
        {**_WAN_PARTS, "transformer_2": ("WanTransformer3DModel", WAN)},
    ),
    "Qwen-Image": ("QwenImagePipeline", {}, _QWEN_PARTS),
    "Qwen-Image-Edit": ("QwenImageEditPipeline", {}, {**_QWEN_PARTS, "processor": ("Qwen2VLProcessor", {})}),
}
"""Pipeline class, its configs, and class and configuration of each component."""
_FILES = {"scheduler": "scheduler_config.json", "image_processor": "preprocessor_config.json"}
_OF_DIFFUSERS = ("vae", "scheduler", "transformer", "transformer_2")


def write(folder: Path, name: str) -> Path:
    """Write the model's folder, as `save_pretrained` lays it out; returns it."""
    pipeline_class, configs, parts = MODELS[name]
    root = folder / name
    index: Config = {"_class_name": pipeline_class, "_diffusers_version": "0.35.0", **configs}
    for part, (class_name, config) in parts.items():
        index[part] = ["diffusers" if part in _OF_DIFFUSERS else "transformers", class_name]
        if config:
            file = root / part / _FILES.get(part, "config.json")
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"_class_name": class_name, **config}))
    root.mkdir(exist_ok=True)
    (root / "model_index.json").write_text(json.dumps(index))
    return root
