"""Which of a request's texts cross from role to role: of every family that diffusers has, from its own declarations."""

from __future__ import annotations

import diffusers
import pytest
from diffusers.modular_pipelines import ModularPipelineBlocks

from triptych.roles import ROLES
from triptych.stages.handoff import Needs
from triptych.stages.inputs import describe_input
from triptych.stages.whole import DENOISE, _split
from triptych.v1.model_pb2 import INPUT_KIND_TEXT

BLOCKS = sorted(name for name in dir(diffusers) if name.endswith("Blocks") and name not in ("ModularPipelineBlocks",))
SETTINGS = {"output_type", "mixed_precision_format", "mixed_precision_reasoner_policy"}
"""Texts that later roles take, and that are no prompts."""


def splittable(name: str) -> ModularPipelineBlocks | None:
    kind = getattr(diffusers, name)
    is_whole = isinstance(kind, type) and issubclass(kind, ModularPipelineBlocks) and hasattr(kind, "model_name")
    blocks = kind() if is_whole else None
    return blocks if blocks is not None and DENOISE in blocks.sub_blocks else None


def test_there_are_families_to_look_at() -> None:
    assert sum(splittable(name) is not None for name in BLOCKS) > 30


@pytest.mark.parametrize("name", BLOCKS)
def test_no_prompt_crosses(name: str) -> None:
    """As text: what encoders make of it does."""
    blocks = splittable(name)
    if blocks is None:
        pytest.skip("has no block that is the transformer's, or is a part of another")
    parts = _split(blocks, name)
    texts = {p.name for p in blocks.inputs if p.name and describe_input(p, blocks).kind == INPUT_KIND_TEXT}
    assert any("prompt" in text for text in texts) or not texts - SETTINGS
    assert texts.intersection(Needs.of(parts[role] for role in ROLES[1:]).names) <= SETTINGS
