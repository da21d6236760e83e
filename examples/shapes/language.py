"""The words of all prompts, and a text encoder with its way from prompts to states, whatever its architecture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import clips

EMPTY_PROMPT_SHARE = 0.1  # what the model learns for classifier-free guidance to push away from


class States(NamedTuple):
    """A text encoder's states [batch, length, width]; which of them the transformer sees, and which must tell what the
    whole prompt asks for: masks [batch, length]."""

    states: torch.Tensor
    seen: torch.Tensor
    telling: torch.Tensor


class Language(NamedTuple):
    """A text encoder of `width`, its `encode` from prompts to `States`, and the `wordings` that it learns."""

    encoder: nn.Module
    width: int
    encode: Callable[[list[str]], States]
    wordings: clips.Wordings

    def draw_prompt(self, attributes: clips.Attributes, rng: random.Random) -> str:
        """A wording of `attributes`, or nothing."""
        if rng.random() < EMPTY_PROMPT_SHARE:
            return ""
        return clips.phrase(attributes, rng, wordings=self.wordings)


def words(wordings: clips.Wordings) -> list[str]:
    """Every lower-case word that these wordings may hold, sorted."""
    text = " ".join(
        [*wordings.full, *wordings.partial, *clips.COLOURS, *clips.SHAPES]
        + [synonym for synonyms in clips.SYNONYMS.values() for synonym in synonyms]
    )
    return sorted(set(re.findall(r"[a-z]+", re.sub(r"{\w+}", "", text))))
