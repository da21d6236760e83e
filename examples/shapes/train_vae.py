"""Train the VAE: single frames first, then clips."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import nn

import clips
import models
from progress import Run

FRAMES_UNTIL = 0.2  # of the run; a batch of frames costs far less than one of clips, and teaches colours and edges
FRAMES_BATCH = 8
CLIPS_BATCH = 4
LEARNING_RATE = 2e-3
POLISH_RATE = 1e-3
LATENT_NOISE = 0.1  # stands in for a sampled posterior, and for the small errors of a denoised latent
LATENT_WEIGHT = 1e-3  # a light pull to zero, so that the noise has a scale to be small against
SHAPE_WEIGHT = 8.0  # a small shape is 7% of the picture: unweighted, its outline is learned last


def sample_clips(count: int, frames: int, rng: random.Random) -> torch.Tensor:
    """`count` random clips [count, 3, frames, 64, 64]."""
    return torch.stack([clips.render(rng.choice(clips.ALL_ATTRIBUTES), rng, frames) for _ in range(count)])


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + L2 of clips [batch, 3, F, H, W], heavier on and around the shape."""
    # The top left corner is always background.
    shape = (target - target[..., :1, :1]).abs().amax(1) > 0.05
    near = F.max_pool2d(shape.float(), 7, stride=1, padding=3)
    error = output - target
    weight = 1 + SHAPE_WEIGHT * near[:, None]
    return (weight * (error.abs() + error**2)).sum() / weight.expand_as(error).sum()


def train_vae(work: Path, minutes: float, seed: int) -> AutoencoderKLWan:
    """Train for `minutes` in all, going on from `work`/vae.pt if it is there."""
    torch.manual_seed(seed)
    vae = models.make_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(work / "vae.pt", minutes, {"vae": vae}, optimizer, LEARNING_RATE)
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        whole = run.fraction > FRAMES_UNTIL
        target = sample_clips(CLIPS_BATCH, clips.FRAMES, rng) if whole else sample_clips(FRAMES_BATCH, 1, rng)
        latents = vae.encode(target).latent_dist.mode()
        run.report = _update(vae, optimizer, latents, target)
    return vae.eval()


def polish_decoder(work: Path, vae: AutoencoderKLWan, minutes: float, seed: int) -> None:
    """Train the decoder alone for `minutes` in all, going on from `work`/decoder.pt if it is there.

    The latents stay as they are, so this may run after the transformer has learned them.
    """
    torch.manual_seed(seed + 1)
    vae.requires_grad_(False)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=POLISH_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(work / "decoder.pt", minutes, {"decoder": decoder}, optimizer, POLISH_RATE)
    for step in run:
        target = sample_clips(CLIPS_BATCH, clips.FRAMES, random.Random((seed + 1) * 1_000_003 + step))
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.mode()
        run.report = _update(vae, optimizer, latents, target)


def _update(
    vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer, latents: torch.Tensor, target: torch.Tensor
) -> str:
    """One step on clips `target` and their `latents`; returns a line that says how it went."""
    output = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
    loss = reconstruction_loss(output, target)
    optimizer.zero_grad()
    torch.autograd.backward(loss + LATENT_WEIGHT * latents.square().mean())
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return f"loss {loss.item():.4f}  latents {latents.std().item():.2f}  frames {target.shape[2]}"
