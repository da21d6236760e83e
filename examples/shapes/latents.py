"""Latents that a finished VAE encodes once, for the transformers to learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan

ENCODE_BATCH = 16


class LatentSet(NamedTuple):
    """Latents as the VAE gives them [N, Z_DIM, T, h, w], and each one's index in ALL_ATTRIBUTES [N]."""

    latents: torch.Tensor
    attributes: torch.Tensor


@torch.no_grad()
def encode_latents(
    path: Path,
    vae: AutoencoderKLWan | AutoencoderKLQwenImage,
    indices: list[int],
    draw: Callable[[int], torch.Tensor],
) -> LatentSet:
    """Encode one clip [3, F, H, W], drawn by `draw`, for each of `indices` in ALL_ATTRIBUTES; kept in `path`."""
    if path.exists():
        return LatentSet(**torch.load(path, weights_only=True))
    batches = []
    for start in range(0, len(indices), ENCODE_BATCH):
        target = torch.stack([draw(index) for index in indices[start : start + ENCODE_BATCH]])
        batches.append(vae.encode(target).latent_dist.mode())
    latents = LatentSet(torch.cat(batches), torch.tensor(indices))
    torch.save(latents._asdict(), path)
    return latents


def normalise(vae: AutoencoderKLWan | AutoencoderKLQwenImage, latents: LatentSet) -> LatentSet:
    """Shift and scale each channel to mean 0 and deviation 1, and note both in the VAE's config."""
    mean = latents.latents.mean((0, 2, 3, 4))
    std = latents.latents.std((0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in mean.tolist()],
        latents_std=[round(value, 4) for value in std.tolist()],
    )
    shape = (1, -1, 1, 1, 1)
    return latents._replace(latents=(latents.latents - mean.view(shape)) / std.view(shape))
