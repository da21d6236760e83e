"""Tiny random models of several families, saved as folders: made from a seed, offline, a few hundred KB each.

Every function takes the folder to hold the model, fills it once and returns it as text. Scale factors, channel counts
and scheduler settings are *not* the defaults, so that code that falls back to a default in silence is caught.

Only tests name model families: the library must not. `tests/families` has a model of every one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.families import texts

DONE_NAME = ".complete"
"""Written last: a folder without it is made anew."""


def wan_t2v(folder: str | Path, seed: int = 0) -> str:
    """Text to video. Spatial factor 4, temporal 2: sizes are multiples of 8, frames odd."""

    def make() -> Any:
        return diffusers.WanPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=texts.t5_encoder(umt5=True),
            vae=diffusers.AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 0.8, 1.1, 2.0],
                scale_factor_temporal=2,
                scale_factor_spatial=4,
            ),
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
            ),
            transformer=diffusers.WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=32,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            ),
        )

    return _save(folder, seed, make)


def qwen_image(folder: str | Path, seed: int = 0) -> str:
    """Text to image. Spatial factor 4 where the family's default is 8: sizes are multiples of 8."""

    def make() -> Any:
        return diffusers.QwenImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
                time_shift_type="exponential",
            ),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 0.8, 1.1, 2.0],
            ),
            text_encoder=_qwen_vl_encoder(),
            tokenizer=qwen_tokenizer(),
            transformer=diffusers.QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(8, 4, 4),
            ),
        )

    return _save(folder, seed, make)


def sd3(folder: str | Path, seed: int = 0) -> str:
    """Text to image and image to image. Spatial factor 4: sizes are multiples of 8."""

    def make() -> Any:
        return diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pooled_projection_dim=64,
                out_channels=4,
                pos_embed_max_size=32,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.5),
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8, 16),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=32,
                scaling_factor=1.3,
                shift_factor=0.06,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=texts.clip_text(projected=True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=texts.clip_text(projected=True),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=texts.t5_encoder(),
            tokenizer_3=t5_tokenizer(),
            image_encoder=None,
            feature_extractor=None,
        )

    return _save(folder, seed, make)


def ltx_image(folder: str | Path, seed: int = 0) -> str:
    """Text and image to video; encoder and transformer both draw from the job's generator.

    Spatial factor 8, but the family's image processor rounds to 32; temporal factor 4. The decoder is conditioned on a
    timestep, so it draws from the global generator.
    """

    def make() -> Any:
        return diffusers.LTXImageToVideoPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
            vae=diffusers.AutoencoderKLLTXVideo(
                latent_channels=8,
                block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                layers_per_block=(1, 1, 1, 1, 1),
                decoder_layers_per_block=(1, 1, 1, 1, 1),
                spatio_temporal_scaling=(True, True, False, False),
                decoder_spatio_temporal_scaling=(True, True, False, False),
                decoder_inject_noise=(True, False, False, False, False),
                timestep_conditioning=True,
                patch_size=2,
                encoder_causal=True,
                decoder_causal=False,
            ),
            text_encoder=texts.t5_encoder(),
            tokenizer=t5_tokenizer(),
            transformer=diffusers.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=12,
                cross_attention_dim=24,
                num_layers=2,
                caption_channels=32,
            ),
        )

    return _save(folder, seed, make)


def modular(source: str | Path, folder: str | Path) -> str:
    """The same model in the modular layout (`modular_model_index.json`)."""
    folder = Path(folder)
    if not (folder / DONE_NAME).exists():
        pipeline = diffusers.ModularPipeline.from_pretrained(str(source))
        pipeline.load_components(dtype=torch.float32)
        pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
        (folder / DONE_NAME).touch()
    return str(folder)


def recommend(folder: str | Path, **defaults: object) -> None:
    """Writes the folder's `triptych.json`; `frames_per_second` goes to its own place."""
    content: dict[str, object] = {}
    if "frames_per_second" in defaults:
        content["frames_per_second"] = defaults.pop("frames_per_second")
    content["defaults"] = defaults
    Path(folder, "triptych.json").write_text(json.dumps(content))


def t5_tokenizer() -> Any:
    """A Unigram tokenizer over printable ASCII: every letter is a token."""
    letters = [chr(code) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)


def qwen_tokenizer() -> Any:
    """A byte-level tokenizer without merges, with the tokens of the chat template."""
    vocab = {letter: index for index, letter in enumerate(_byte_letters())}
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocab[token] = len(vocab)
    return transformers.Qwen2Tokenizer(
        vocab=vocab, merges=[], model_max_length=2048, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def clip_tokenizer() -> Any:
    """A byte-level tokenizer with word ends and without merges."""
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level tokenizers."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _qwen_vl_encoder() -> Any:
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 1000000.0},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _save(folder: str | Path, seed: int, make: Callable[[], Any]) -> str:
    folder = Path(folder)
    if not (folder / DONE_NAME).exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make().save_pretrained(str(folder))
        (folder / DONE_NAME).touch()
    return str(folder)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])  # for example: python -m tests.models wan_t2v my-model
