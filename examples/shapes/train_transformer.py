"""Train the transformer and the text encoder, together, on latents that the finished VAE encoded once."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import clips
import models
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from progress import Run
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

LATENTS_PER_COMBINATION = 3
ENCODE_BATCH = 16
BATCH = 32
LEARNING_RATE = 1.2e-3
EMPTY_PROMPT_SHARE = 0.1  # what the model learns for classifier-free guidance to push away from
EMA_DECAY = 0.998
EMA_WARMUP_STEPS = 200
WORDS_MAX = 32  # the longest wording takes 22 tokens
PADDED_LENGTHS = (64, 128, 226, 512, 512, 512)  # what callers pad to: 512 by default, other values by request


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
    WORDS_MAX stands in for all of it: same result, a tenth of the time.
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


class Denoiser(nn.Module):
    """Text encoder and transformer as one module: what is trained, averaged and saved together."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder: UMT5EncoderModel = models.make_text_encoder(len(tokenizer))
        self.transformer: WanTransformer3DModel = models.make_transformer()
        self.tokenizer = tokenizer
        self.padding = PaddedCrossAttention()

    def pad_cheaply(self) -> None:
        """Switch the cross-attention to `PaddedCrossAttention`."""
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.padding)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, prompts: list[str], padded_length: int) -> torch.Tensor:
        """The velocity [batch, Z_DIM, T, h, w] at `noisy`, alike; `sigma` [batch] in 0..1."""
        text = self.tokenizer(prompts, padding="max_length", max_length=WORDS_MAX, truncation=True, return_tensors="pt")
        mask = text.attention_mask
        self.padding.set_lengths(mask.sum(1), padded_length)
        embeds = self.text_encoder(text.input_ids, mask).last_hidden_state * mask[..., None]
        velocity: torch.Tensor = self.transformer(noisy, sigma * 1000, embeds, return_dict=False)[0]
        return velocity


def draw_sigmas(count: int) -> torch.Tensor:
    """Noise levels [count]: stratified, under the sampler's own shift, so that each step it takes was practised."""
    uniform = (torch.arange(count) + torch.rand(count)) / count
    return models.FLOW_SHIFT * uniform / (1 + (models.FLOW_SHIFT - 1) * uniform)


def draw_prompts(indices: list[int], rng: random.Random) -> list[str]:
    """A wording for each; some empty."""
    return [
        "" if rng.random() < EMPTY_PROMPT_SHARE else clips.phrase(clips.ALL_ATTRIBUTES[index], rng) for index in indices
    ]


@torch.no_grad()
def average(ema: nn.Module, module: nn.Module, step: int) -> None:
    """Move `ema` towards `module`; fast at first, when early weights are not worth remembering."""
    decay = min(EMA_DECAY, (1 + step) / (EMA_WARMUP_STEPS + step))
    for mean, value in zip(ema.parameters(), module.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def train_transformer(work: Path, latents: LatentSet, minutes: float, seed: int) -> Denoiser:
    """Train on normalised latents for `minutes` in all, going on from `work`/transformer.pt if it is there.

    Returns the averaged weights.
    """
    torch.manual_seed(seed)
    denoiser = Denoiser(models.make_tokenizer()).train()
    ema = copy.deepcopy(denoiser).requires_grad_(False)
    denoiser.pad_cheaply()
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    run = Run(work / "transformer.pt", minutes, {"denoiser": denoiser, "ema": ema}, optimizer, LEARNING_RATE)
    mean_loss = math.nan
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.tensor(rng.choices(range(len(latents.latents)), k=BATCH))
        clean = latents.latents[chosen]
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(BATCH)
        level = sigma.view(-1, 1, 1, 1, 1)
        prompts = draw_prompts(latents.attributes[chosen].tolist(), rng)
        velocity = denoiser(clean + level * (noise - clean), sigma, prompts, rng.choice(PADDED_LENGTHS))
        loss = F.mse_loss(velocity, noise - clean)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        average(ema, denoiser, step)
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        run.report = f"loss {mean_loss:.4f}"
    return ema.eval()
