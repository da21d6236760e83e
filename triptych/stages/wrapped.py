"""Layers that peft has wrapped for adapters: which adapters they have, and of what those are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Pair(NamedTuple):
    """The shapes of the two matrices that a LoRA has for one layer."""

    down: torch.Size
    """The rank, the layer's inputs, and the sizes of a convolution's kernel."""
    up: torch.Size
    """The layer's outputs, the rank, and a 1 for each size of a kernel."""

    @property
    def rank(self) -> int:
        """The inner dimension of their product."""
        return self.down[0]


def ranks_of(module: torch.nn.Module) -> Mapping[str, int]:
    """The ranks of a layer's adapters by key; nothing for a layer that isn't wrapped."""
    ranks = getattr(module, "r", None)
    return ranks if isinstance(ranks, dict) else {}


def has(model: torch.nn.Module, key: str) -> bool:
    """Whether an adapter touches a layer of the model."""
    return any(key in ranks_of(module) for module in model.modules())


def bytes_of(model: torch.nn.Module, key: str) -> int:
    """What an adapter takes in the model."""
    return sum(parameter.nbytes for name, parameter in model.named_parameters() if f".{key}." in f"{name}.")


def pairs_of(model: torch.nn.Module, key: str) -> dict[str, Pair]:
    """An adapter's matrices by the path of their layer; nothing where it has more than these, as DoRA and LoKr do."""
    found = {}
    expected = set()
    for path, module in model.named_modules():
        if key in ranks_of(module):
            layer: Any = module
            is_grouped = getattr(layer.get_base_layer(), "groups", 1) > 1
            if is_grouped or key not in getattr(layer, "lora_A", {}) or key in layer.lora_variant:
                return {}
            found[path] = Pair(layer.lora_A[key].weight.shape, layer.lora_B[key].weight.shape)
            expected |= {f"{path}.lora_A.{key}.weight", f"{path}.lora_B.{key}.weight"}
    has_more = any(f".{key}." in f"{name}." and name not in expected for name, _parameter in model.named_parameters())
    return {} if has_more else found
