"""Train the transformer on latents that the finished VAE encoded once, under the finished text encoder."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

import clips
import models
from progress import Run
from train_text import WORDS_MAX, draw_prompt, tokenize

LATENTS_PER_COMBINATION = 3
ENCODE_BATCH = 16
BATCH = 32
LEARNING_RATE = 1.2e-3
SHAPE_WEIGHT = 3.0  # most of the picture is plain: unweighted, the outline is learned last
EMA_DECAY = 0.996
EMA_WARMUP_STEPS = 200
PADDED_LENGTHS = (64, 128, 226, 512, 512, 512)  # what callers pad to: 512 by default, other values by request
RAMP_UNTIL = 0.35  # of the run


class LatentSet(NamedTuple):
    """Latents as the VAE gives them [N, Z_DIM, T, h, w], and each one's index in ALL_ATTRIBUTES [N]."""

    latents: torch.Tensor
    attributes: torch.Tensor


@torch.no_grad()
def encode_latents(work: Path, vae: AutoencoderKLWan, seed: int) -> LatentSet:
    """Encode every combination of attributes from several starting points; kept in `work`/latents.pt."""
    path = work / "latents.pt"
    if path.exists():
        return LatentSet(**torch.load(path, weights_only=True))
    rng = random.Random(seed)
    indices = list(range(len(clips.ALL_ATTRIBUTES))) * LATENTS_PER_COMBINATION
    batches = []
    for start in range(0, len(indices), ENCODE_BATCH):
        batch = [clips.ALL_ATTRIBUTES[index] for index in indices[start : start + ENCODE_BATCH]]
        target = torch.stack([clips.render(attributes, rng) for attributes in batch])
        batches.append(vae.encode(target).latent_dist.mode())
    latents = LatentSet(torch.cat(batches), torch.tensor(indices))
    torch.save(latents._asdict(), path)
    return latents


def normalise(vae: AutoencoderKLWan, latents: LatentSet) -> LatentSet:
    """Shift and scale each channel to mean 0 and deviation 1, and note both in the VAE's config."""
    mean = latents.latents.mean((0, 2, 3, 4))
    std = latents.latents.std((0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in mean.tolist()],
        latents_std=[round(value, 4) for value in std.tolist()],
    )
    shape = (1, -1, 1, 1, 1)
    return latents._replace(latents=(latents.latents - mean.view(shape)) / std.view(shape))


class PaddedCrossAttention:
    """Attention processor that pads the text without paying for it, for training only.

    Wan's pipelines pad each prompt's embeddings with zeros to 512 and the model attends to all of them. Identical keys
    with identical values weigh as one key whose logit is raised by the log of their number. So the padding within
    WORDS_MAX stands in for all of it: same result, far fewer keys.
    """

    def __init__(self) -> None:
        self.bias: torch.Tensor | None = None

    def set_lengths(self, lengths: torch.Tensor, padded_length: int) -> None:
        """`lengths` [batch]: tokens of each prompt; `padded_length`: how many the pipeline would attend to."""
        standing_in = (WORDS_MAX - lengths).float()
        extra = torch.log((padded_length - lengths) / standing_in)
        is_padding = torch.arange(WORDS_MAX)[None] >= lengths[:, None]
        self.bias = torch.where(is_padding, extra[:, None], 0.0)[:, None, None]

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        projected: torch.Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2, 3))
        return projected


def draw_sigmas(count: int) -> torch.Tensor:
    """Noise levels [count]: half under the sampler's own shift, half even."""
    uniform = (torch.arange(count) + torch.rand(count)) / count
    shift = torch.where(torch.rand(count) < 0.5, models.FLOW_SHIFT, 1.0)
    return shift * uniform / (1 + (shift - 1) * uniform)


def draw_padded_length(fraction: float, rng: random.Random) -> int:
    """How many tokens to attend to, `fraction` into the run.

    At first there is little padding: among 500 idle keys a fresh model hardly sees the prompt. Then ever more.
    """
    ramp: float = WORDS_MAX * (models.TEXT_LENGTH_MAX / WORDS_MAX) ** min(1.0, fraction / RAMP_UNTIL)
    return min(rng.choice(PADDED_LENGTHS), round(ramp) + 1)


def shape_weights(clean: torch.Tensor) -> torch.Tensor:
    """How much each place of the normalised latents [batch, Z_DIM, T, h, w] counts, [batch, 1, T, h, w]; mean 1."""
    # The background covers most of each frame. Where it is plain the latents still vary a little, near the edges.
    background = clean.flatten(3).median(-1).values[..., None, None]
    busy = (clean - background).abs().mean(1, keepdim=True) > 0.7
    weights = 1 + SHAPE_WEIGHT * busy.float()
    return weights / weights.mean()


@torch.no_grad()
def average(ema: nn.Module, module: nn.Module, step: int) -> None:
    """Move `ema` towards `module`; fast at first, when early weights are not worth remembering."""
    decay = min(EMA_DECAY, (1 + step) / (EMA_WARMUP_STEPS + step))
    for mean, value in zip(ema.parameters(), module.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def train_transformer(
    work: Path, latents: LatentSet, text_encoder: UMT5EncoderModel, minutes: float, seed: int
) -> WanTransformer3DModel:
    """Train on normalised latents for `minutes` in all, going on from `work`/transformer.pt if it is there.

    Returns the averaged weights.
    """
    torch.manual_seed(seed)
    tokenizer = models.make_tokenizer()
    transformer = models.make_transformer().train()
    ema = copy.deepcopy(transformer).requires_grad_(False)
    padding = PaddedCrossAttention()
    for block in transformer.blocks:
        block.attn2.set_processor(padding)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    modules = {"transformer": transformer, "ema": ema}
    run = Run(work / "transformer.pt", minutes, modules, optimizer, LEARNING_RATE)
    mean_loss = math.nan
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.tensor(rng.choices(range(len(latents.latents)), k=BATCH))
        prompts = [draw_prompt(clips.ALL_ATTRIBUTES[index], rng) for index in latents.attributes[chosen].tolist()]
        ids, mask = tokenize(tokenizer, prompts)
        with torch.no_grad():
            embeds = text_encoder(ids, mask).last_hidden_state * mask[..., None]
        padding.set_lengths(mask.sum(1), draw_padded_length(run.fraction, rng))
        clean = latents.latents[chosen]
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(BATCH)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * (noise - clean)
        velocity = transformer(noisy, sigma * 1000, embeds, return_dict=False)[0]
        loss = ((velocity - (noise - clean)) ** 2 * shape_weights(clean)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        average(ema, transformer, step)
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        run.report = f"loss {mean_loss:.4f}"
    return ema.eval()
