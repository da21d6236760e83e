"""Train the clips' transformer on latents that the finished VAE encoded once, under the finished text encoder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import nn

import clips
import models
from flow import Batch, train_flow
from language import Language
from latents import LatentSet, encode_latents

LATENTS_PER_COMBINATION = 3
BATCH = 32
PADDED_LENGTHS = (64, 128, 226, 512, 512, 512)  # what callers pad to: 512 by default, other values by request
RAMP_UNTIL = 0.35  # of the run


def encode_clips(path: Path, vae: AutoencoderKLWan, seed: int, per_combination: int) -> LatentSet:
    """Encode every combination of attributes from several starting points; kept in `path`."""
    rng = random.Random(seed)
    indices = list(range(len(clips.ALL_ATTRIBUTES))) * per_combination
    return encode_latents(path, vae, indices, lambda index: clips.render(clips.ALL_ATTRIBUTES[index], rng))


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
        standing_in = (models.WORDS_MAX - lengths).float()
        extra = torch.log((padded_length - lengths) / standing_in)
        is_padding = torch.arange(models.WORDS_MAX)[None] >= lengths[:, None]
        self.bias = torch.where(is_padding, extra[:, None], 0.0)[:, None, None]

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # An image encoder's states, where there are any, stand before the text.
        image_states, text_states = encoder_hidden_states.tensor_split([-models.WORDS_MAX], dim=1)
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        key = _heads(attn, attn.norm_k(attn.to_k(text_states)))
        out = F.scaled_dot_product_attention(query, key, _heads(attn, attn.to_v(text_states)), attn_mask=self.bias)
        if attn.add_k_proj is not None:
            key = _heads(attn, attn.norm_added_k(attn.add_k_proj(image_states)))
            out = out + F.scaled_dot_product_attention(query, key, _heads(attn, attn.add_v_proj(image_states)))
        projected: torch.Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2, 3))
        return projected


def _heads(attn: Any, states: torch.Tensor) -> torch.Tensor:
    """[batch, length, width] to [batch, heads, length, width of a head]."""
    return states.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def draw_padded_length(fraction: float, rng: random.Random) -> int:
    """How many tokens to attend to, `fraction` into the run.

    At first there is little padding: among 500 idle keys a fresh model hardly sees the prompt. Then ever more.
    """
    ramp: float = models.WORDS_MAX * (models.TEXT_LENGTH_MAX / models.WORDS_MAX) ** min(1.0, fraction / RAMP_UNTIL)
    return min(rng.choice(PADDED_LENGTHS), round(ramp) + 1)


def train_transformer(work: Path, latents: LatentSet, language: Language, minutes: float, seed: int) -> nn.Module:
    """Train on normalised latents for `minutes` in all, going on from `work`/transformer.pt if it is there.

    Returns the averaged weights.
    """
    torch.manual_seed(seed)
    transformer = models.make_transformer()
    padding = PaddedCrossAttention()
    for block in transformer.blocks:
        block.attn2.set_processor(padding)

    def draw(step: int, fraction: float) -> Batch:
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.tensor(rng.choices(range(len(latents.latents)), k=BATCH))
        attributes = [clips.ALL_ATTRIBUTES[index] for index in latents.attributes[chosen].tolist()]
        with torch.no_grad():
            encoded = language.encode([language.draw_prompt(one, rng) for one in attributes])
        padding.set_lengths(encoded.seen.sum(1), draw_padded_length(fraction, rng))

        def predict(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            velocity: torch.Tensor = transformer(noisy, sigma * 1000, encoded.states, return_dict=False)[0]
            return velocity

        return Batch(latents.latents[chosen], predict)

    return train_flow(work / "transformer.pt", transformer, draw, minutes, models.FLOW_SHIFT)
