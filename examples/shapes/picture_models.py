"""The picture model's components, at their full (tiny) size with fresh weights, and how they are saved.

The architecture is that of Qwen-Image; only the sizes differ. Its VAE has the layers of Wan's under another name, so it
takes the weights of the clips' VAE, and gives the same numbers for single frames.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.modular_pipelines.qwenimage.encoders import get_qwen_prompt_embeds
from diffusers.modular_pipelines.qwenimage.prompt_templates import (
    QWENIMAGE_PROMPT_TEMPLATE,
    QWENIMAGE_PROMPT_TEMPLATE_START_IDX,
)
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

import clips
from language import Language, States, words
from models import Z_DIM, save

TEXT_DIM = 128
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CLOSING_TOKENS = 5  # of the template, after the prompt: <|im_end|>, a line feed, <|im_start|>, assistant, a line feed
LOG_SHIFT = 1.1  # exp(1.1) = 3, as the clips' sampler


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, whose merges make one token of each word of the template and the prompts.

    :raises AssertionError: the template's opening isn't as many tokens as Qwen-Image's pipelines drop.
    """
    opening, closing = QWENIMAGE_PROMPT_TEMPLATE.split("{}")
    known = words(clips.PICTURE_WORDINGS)
    corpus = re.split(r"<\|\w+\|>", QWENIMAGE_PROMPT_TEMPLATE)
    corpus += [*known, *(f" {word}" for word in known), *(word.capitalize() for word in known)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than it takes: training ends when every word is one token
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=2048,
    )
    assert len(tokenizer(opening).input_ids) == QWENIMAGE_PROMPT_TEMPLATE_START_IDX
    assert len(tokenizer(closing).input_ids) == CLOSING_TOKENS
    return tokenizer


def make_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of two layers, hidden states [batch, length, TEXT_DIM]; its eyes are of the smallest size."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_DIM,
        "intermediate_size": 2 * TEXT_DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "max_position_embeddings": 2048,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": TEXT_DIM,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def make_language() -> Language:
    """The text encoder, fresh, with Qwen-Image's template around each prompt."""
    tokenizer = make_tokenizer()
    encoder = make_text_encoder(tokenizer)

    def encode(prompts: list[str]) -> States:
        states, seen = get_qwen_prompt_embeds(encoder, tokenizer, prompts, device=torch.device("cpu"))
        # A token of a causal encoder knows what stands before it: those after the prompt know all of it.
        place = torch.arange(seen.shape[1])[None]
        lengths = seen.sum(1, keepdim=True)
        telling = (place >= lengths - CLOSING_TOKENS) & (place < lengths)
        return States(states, seen, telling.long())

    return Language(encoder, TEXT_DIM, encode, clips.PICTURE_WORDINGS)


def make_vae(clip_vae: AutoencoderKLWan) -> AutoencoderKLQwenImage:
    """Qwen-Image's VAE with the weights of the clips' one: [batch, 3, 1, 8h, 8w] to [batch, Z_DIM, 1, h, w]."""
    names = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample")
    vae = AutoencoderKLQwenImage(
        **{name: clip_vae.config[name] for name in names}, latents_mean=[0.0] * Z_DIM, latents_std=[1.0] * Z_DIM
    )
    vae.load_state_dict(clip_vae.state_dict())
    return vae


def make_transformer() -> QwenImageTransformer2DModel:
    """Qwen-Image's denoiser, about 2.5 M parameters: four double-stream layers of width 128."""
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * Z_DIM,
        out_channels=Z_DIM,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(8, 12, 12),
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Qwen-Image's own sampler, with one shift for every size of picture."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=LOG_SHIFT, max_shift=LOG_SHIFT, time_shift_type="exponential"
    )


RECOMMENDED = {"defaults": {"height": clips.SIDE_PX, "width": clips.SIDE_PX, "num_inference_steps": 12}}
"""What Triptych takes where a request says nothing: the sizes that the model was trained on."""


def export(folder: Path, vae: nn.Module, text_encoder: nn.Module, transformer: nn.Module) -> None:
    """Save the pipeline in fp16 as `folder`; the modules are rounded to fp16 in place."""
    pipeline = QwenImagePipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder.half(),
        vae=vae.half(),
        scheduler=make_scheduler(),
        transformer=transformer.half(),
    )
    save(pipeline, folder, RECOMMENDED)
