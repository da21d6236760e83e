"""Adapters of a compiled model: their matrices are copied into slots of one shape, so that nothing is compiled again.

A slot is an adapter of zeros in the model, by diffusers' own loader, over all layers that the registry's adapters
touch, of the rank that the model's means say. An adapter is loaded into an outline of the model on the CPU, and copied
into a slot for a job: rows and columns beyond its own rank stay zeros, and so do layers that it leaves alone. The scale
is a tensor in place of a number, which would be a constant of the compiled code; so diffusers has it after
`enable_lora_hotswap`. The first adapter of a job is in the first slot, and so on; the code without adapters, with one
and with two is compiled once each.

All calls belong to the stage's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from triptych.stages.adapter_files import AdapterFiles
from triptych.stages.device import undisturbed
from triptych.stages.library import ModularPipeline, set_adapter_layers, set_weights_and_activate_adapters
from triptych.stages.wrapped import Pair, has, ranks_of

SLOTS_AT_START = 2
"""A job of more adapters makes more slots, and code for one adapter is compiled again then: people combine two mostly,
a distilled one and a style."""
log = logging.getLogger(__name__)


class Slots:
    """The slots of one component."""

    def __init__(
        self, component: str, model: Any, outline: torch.nn.Module, pairs: Mapping[str, Pair], rank: int
    ) -> None:
        """`outline` is the model on the CPU without its weights; `pairs` are of all layers that adapters may touch."""
        self.outline = outline
        """Where adapters are loaded that go into slots."""
        self._component = component
        self._model = model
        self._pairs = pairs
        self._rank = rank
        self._held: dict[str, str] = {}
        """What each slot has, by its name."""

    def fits(self, files: AdapterFiles) -> bool:
        """Whether an adapter goes into these slots."""
        return _fits(files, self._component, self._rank)

    def prepare(self, count: int) -> None:
        """Have this many slots in the model."""
        missing = [name for name in map(_name, range(count)) if not has(self._model, name)]
        for name in missing:
            self._add(name)
        if missing:
            set_adapter_layers(self._model, enabled=False)  # a new one would be on
            what = (len(missing), self._component, self._rank, len(self._pairs))
            log.info("%d slots for adapters in the compiled %s: rank %d, %d layers", *what)

    def take(self, weights: Mapping[str, float]) -> dict[str, str]:
        """Copy those of a job's adapters into slots that the outline has: the names of their slots by key.

        `weights` are by key, in the job's order. The slots aren't switched on.
        """
        keys = [key for key in weights if has(self.outline, key)]
        if keys:
            # diffusers computes each layer's scale, of its weight, alpha and rank
            set_weights_and_activate_adapters(self.outline, keys, [weights[key] for key in keys])
        self.prepare(len(keys))
        taken = {key: _name(number) for number, key in enumerate(keys)}
        with torch.no_grad():
            for key, slot in taken.items():
                self._fill(slot, key)
        return taken

    def _add(self, name: str) -> None:
        zeros = {}
        for path, pair in self._pairs.items():
            layer: Any = self.outline.get_submodule(path)
            down, up = (self._rank, *pair.down[1:]), (pair.up[0], self._rank, *pair.up[2:])
            zeros[f"{path}.lora_A.weight"] = torch.zeros(down, dtype=layer.weight.dtype)
            zeros[f"{path}.lora_B.weight"] = torch.zeros(up, dtype=layer.weight.dtype)
        with undisturbed():
            self._model.load_lora_adapter(zeros, prefix=None, adapter_name=name, low_cpu_mem_usage=True)
        for path in self._pairs:
            layer = self._model.get_submodule(path)
            layer.scaling[name] = torch.tensor(0.0, device=layer.weight.device)

    def _fill(self, slot: str, key: str) -> None:
        is_there = self._held.pop(slot, "") == key
        for path in self._pairs:
            layer: Any = self._model.get_submodule(path)
            source: Any = self.outline.get_submodule(path)
            touches = key in ranks_of(source)
            layer.scaling[slot].fill_(source.scaling[key] if touches else 0.0)
            if is_there:
                continue
            down, up = layer.lora_A[slot].weight, layer.lora_B[slot].weight
            down.zero_()
            up.zero_()
            if touches:
                rank = ranks_of(source)[key]
                down[:rank].copy_(source.lora_A[key].weight)
                up[:, :rank].copy_(source.lora_B[key].weight)
        self._held[slot] = key


def open_slots(
    pipeline: ModularPipeline, models: Mapping[str, torch.nn.Module], files: Mapping[str, AdapterFiles]
) -> dict[str, Slots]:
    """The slots of those of a role's `models` that have them by their means, if any of the registry's files fits."""
    components = pipeline._role_components
    found = {}
    for name, model in models.items():
        compiled = components.compile_of(name)
        rank = compiled.adapter_rank if compiled is not None else 0
        fitting = [one for one in files.values() if _fits(one, name, rank)] if rank else []
        if fitting:
            pairs = {path: pair for one in fitting for path, pair in one.pairs[name].items()}
            found[name] = Slots(name, model, components.outline(name), dict(sorted(pairs.items())), rank)
            found[name].prepare(SLOTS_AT_START)
    return found


def _fits(files: AdapterFiles, component: str, rank: int) -> bool:
    pairs = files.pairs.get(component, {})
    return bool(pairs) and all(pair.rank <= rank for pair in pairs.values())


def _name(number: int) -> str:
    return f"slot_{number}"
