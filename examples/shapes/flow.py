"""Train a transformer by flow matching: at a random share of noise it must say which way the noise lies.

Sources: Lipman et al., "Flow Matching for Generative Modeling" (2023); Esser et al., "Scaling Rectified Flow
Transformers" (2024) for the shift of the noise levels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from progress import Run

LEARNING_RATE = 1.2e-3
SHAPE_WEIGHT = 3.0  # most of the picture is plain: unweighted, the outline is learned last
EMA_DECAY = 0.996
EMA_WARMUP_STEPS = 200


class Batch(NamedTuple):
    """Normalised latents [batch, Z, T, h, w], and the transformer's velocity for (noisy latents, sigmas [batch])."""

    clean: torch.Tensor
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draw_sigmas(count: int, sampler_shift: float) -> torch.Tensor:
    """Noise levels [count]: half under the sampler's own shift, half even."""
    uniform = (torch.arange(count) + torch.rand(count)) / count
    shift = torch.where(torch.rand(count) < 0.5, sampler_shift, 1.0)
    return shift * uniform / (1 + (shift - 1) * uniform)


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


def train_flow(
    checkpoint: Path,
    transformer: nn.Module,
    draw: Callable[[int, float], Batch],
    minutes: float,
    sampler_shift: float,
    peak: float = LEARNING_RATE,
) -> nn.Module:
    """Train for `minutes` in all, going on from `checkpoint` if it is there; returns the averaged weights.

    `draw` gives the batch for a step and for how much of the run is over, 0 to 1.
    """
    transformer.train()
    ema = copy.deepcopy(transformer).requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    run = Run(checkpoint, minutes, {"transformer": transformer, "ema": ema}, optimizer, peak)
    mean_loss = math.nan
    for step in run:
        batch = draw(step, run.fraction)
        noise = torch.randn_like(batch.clean)
        sigma = draw_sigmas(len(batch.clean), sampler_shift)
        noisy = batch.clean + sigma.view(-1, 1, 1, 1, 1) * (noise - batch.clean)
        velocity = batch.predict(noisy, sigma)
        loss = ((velocity - (noise - batch.clean)) ** 2 * shape_weights(batch.clean)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        average(ema, transformer, step)
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        run.report = f"loss {mean_loss:.4f}"
    return ema.eval()
