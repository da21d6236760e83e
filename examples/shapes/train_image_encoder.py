"""Train the image encoder: every one of its states must tell what the picture shows.

Wan 2.1 freezes CLIP's eyes, which already understand pictures. These first learn to name the attributes of the first
frame; then they are frozen, too.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import clips
import image_to_video_models as models
from progress import Run
from train_text import CHOICES

BATCH = 64
LEARNING_RATE = 2e-3
# A still picture shows no direction.
SHOWN = {field: words for field, words in zip(clips.Attributes._fields, CHOICES, strict=True) if field != "direction"}


def train_image_encoder(checkpoint: Path, minutes: float, seed: int) -> nn.Module:
    """Train for `minutes` in all, going on from `checkpoint` if it is there."""
    torch.manual_seed(seed)
    processor, encoder = models.make_image_processor(), models.make_image_encoder().train()
    sizes = [len(words) for words in SHOWN.values()]
    heads = nn.Linear(models.IMAGE_DIM, sum(sizes))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=LEARNING_RATE, weight_decay=0.01)
    run = Run(checkpoint, minutes, {"encoder": encoder, "heads": heads}, optimizer, LEARNING_RATE)
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        attributes = [rng.choice(clips.ALL_ATTRIBUTES) for _ in range(BATCH)]
        frames = torch.stack([clips.to_uint8(clips.render(one, rng)[:, :1])[0] for one in attributes])
        rows = heads(models.image_states(processor, encoder, frames)).split(sizes, dim=-1)
        losses, right = [], []
        for (field, words), row in zip(SHOWN.items(), rows, strict=True):
            answers = torch.tensor([words.index(getattr(one, field)) for one in attributes])[:, None]
            answers = answers.expand(row.shape[:2])  # every state has to know
            losses.append(F.cross_entropy(row.flatten(0, 1), answers.flatten()))
            right.append((row.argmax(-1) == answers).float().mean().item())
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
        run.report = f"loss {sum(loss.item() for loss in losses):.4f}  least right {min(right):.1%}"
    return encoder.eval().requires_grad_(False)
