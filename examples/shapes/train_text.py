"""Train the text encoder: every token of a prompt must tell what the whole prompt asks for.

Wan freezes a text encoder that already understands text. This one first learns the little language of `clips.phrase`,
by naming the attributes; then it is frozen, too. The transformer need not find out from noise what words mean.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

import clips
import models
from progress import Run

BATCH = 96
LEARNING_RATE = 2e-3
EMPTY_PROMPT_SHARE = 0.1  # what the model learns for classifier-free guidance to push away from
WORDS_MAX = 32  # the longest wording takes 17 tokens
# One class more than there are words: "not said".
CHOICES: tuple[tuple[str, ...], ...] = (
    tuple(clips.RADII_PX),
    tuple(clips.COLOURS),
    clips.SHAPES,
    tuple(clips.DIRECTIONS),
    tuple(clips.COLOURS),
)


def draw_prompt(attributes: clips.Attributes, rng: random.Random) -> str:
    """A wording of `attributes`, or nothing."""
    return "" if rng.random() < EMPTY_PROMPT_SHARE else clips.phrase(attributes, rng)


def classes(prompt: str) -> list[int]:
    """For each attribute which of its CHOICES the prompt names, or their number if none."""
    said = clips.read(prompt)
    return [words.index(word) if word else len(words) for words, word in zip(CHOICES, said, strict=True)]


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [batch, WORDS_MAX]."""
    text = tokenizer(prompts, padding="max_length", max_length=WORDS_MAX, truncation=True, return_tensors="pt")
    return text.input_ids, text.attention_mask


def train_text_encoder(work: Path, minutes: float, seed: int) -> UMT5EncoderModel:
    """Train for `minutes` in all, going on from `work`/text_encoder.pt if it is there."""
    torch.manual_seed(seed)
    tokenizer = models.make_tokenizer()
    encoder = models.make_text_encoder(len(tokenizer)).train()
    sizes = [len(words) + 1 for words in CHOICES]
    heads = nn.Linear(models.TEXT_DIM, sum(sizes))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=LEARNING_RATE, weight_decay=0.01)
    run = Run(work / "text_encoder.pt", minutes, {"encoder": encoder, "heads": heads}, optimizer, LEARNING_RATE)
    for step in run:
        rng = random.Random(seed * 1_000_003 + step)
        prompts = [draw_prompt(rng.choice(clips.ALL_ATTRIBUTES), rng) for _ in range(BATCH)]
        wanted = torch.tensor([classes(prompt) for prompt in prompts])
        ids, mask = tokenize(tokenizer, prompts)
        states = encoder(ids, mask).last_hidden_state
        # One row for each real token, each with its prompt's answers.
        rows = heads(states[mask.bool()]).split(sizes, dim=1)
        answers = wanted.repeat_interleave(mask.sum(1), dim=0)
        losses = [F.cross_entropy(row, answers[:, index]) for index, row in enumerate(rows)]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
        right = [(row.argmax(1) == answers[:, index]).float().mean().item() for index, row in enumerate(rows)]
        run.report = f"loss {sum(loss.item() for loss in losses):.4f}  least right {min(right):.1%}"
    return encoder.eval().requires_grad_(False)
