"""Train a text encoder: the tokens of a prompt must tell what the whole prompt asks for.

Wan and Qwen-Image freeze a text encoder that already understands text. These first learn the little language of
`clips.phrase`, by naming the attributes; then they are frozen, too. The transformer need not find out from noise what
words mean.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import clips
from language import Language
from progress import Run

BATCH = 96
LEARNING_RATE = 2e-3
# One class more than there are words: "not said".
CHOICES: tuple[tuple[str, ...], ...] = (
    tuple(clips.RADII_PX),
    tuple(clips.COLOURS),
    clips.SHAPES,
    tuple(clips.DIRECTIONS),
    tuple(clips.COLOURS),
)


def classes(prompt: str) -> list[int]:
    """For each attribute which of its CHOICES the prompt names, or their number if none."""
    said = clips.read(prompt)
    return [words.index(word) if word else len(words) for words, word in zip(CHOICES, said, strict=True)]


def train_text_encoder(checkpoint: Path, language: Language, minutes: float, seed: int) -> None:
    """Train `language`'s encoder for `minutes` in all, going on from `checkpoint` if it is there; then freeze it."""
    torch.manual_seed(seed)
    encoder = language.encoder.train()
    sizes = [len(words) + 1 for words in CHOICES]
    heads = nn.Linear(language.width, sum(sizes))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=LEARNING_RATE, weight_decay=0.01)
    run = Run(checkpoint, minutes, {"encoder": encoder, "heads": heads}, optimizer, LEARNING_RATE)
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        prompts = [language.draw_prompt(rng.choice(clips.ALL_ATTRIBUTES), rng) for _ in range(BATCH)]
        wanted = torch.tensor([classes(prompt) for prompt in prompts])
        encoded = language.encode(prompts)
        # One row for each telling token, each with its prompt's answers.
        rows = heads(encoded.states[encoded.telling.bool()]).split(sizes, dim=1)
        answers = wanted.repeat_interleave(encoded.telling.sum(1), dim=0)
        losses = [F.cross_entropy(row, answers[:, index]) for index, row in enumerate(rows)]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
        right = [(row.argmax(1) == answers[:, index]).float().mean().item() for index, row in enumerate(rows)]
        run.report = f"loss {sum(loss.item() for loss in losses):.4f}  least right {min(right):.1%}"
    encoder.eval().requires_grad_(False)
