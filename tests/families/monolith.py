"""What diffusers itself makes of a job, whole and in this process: the bits that the services must give."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import torch

from tests.families import ip_adapters
from tests.families.cases import PROMPT, SEED, Case


def load(folder: str) -> diffusers.ModularPipeline:
    """The whole pipeline with its weights."""
    torch.set_num_threads(1)
    pipeline = diffusers.ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=torch.float32)
    return pipeline


def run(folder: str, case: Case, outputs: list[str]) -> dict[str, Any]:
    """The job's outputs by name. The pipeline is loaded for it, since schedulers and guiders keep state."""
    pipeline = load(folder)
    ip_adapters.load(pipeline, folder, case)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    arguments = copy.deepcopy(case.arguments)
    state = pipeline(prompt=PROMPT, generator=generator, **arguments)
    return {name: state.get(name) for name in outputs if state.get(name) is not None}
