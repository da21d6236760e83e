"""Step caches: diffusers' own, on the models that a job's denoising steps call.

They keep what earlier steps of the same job made, so their state is dropped before each job. Some keep it by branch
(conditional, unconditional) and must be told which one is computed: by `cache_context`, which some pipelines call
themselves. For the others it is called here, around each call of the model, with the number that the call has in its
step. Some keep one state for all branches, and then a job with several branches would mix them: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from triptych.errors import InvalidRequest
from triptych.stages.library import diffusers

BRANCHLESS = ("FasterCacheConfig", "PyramidAttentionBroadcastConfig")
"""Caches that keep one state for all branches, and ask for the present timestep."""


class StepCache:
    """The cache of one model. `names_branches` says whether the pipeline calls `cache_context` itself."""

    def __init__(self, path: str, component: Any, table: Mapping[str, Any], *, names_branches: bool) -> None:
        """Raises InvalidRequest where the model can't have it, or where it matches no part of the model."""
        options = dict(table)
        self._path = path
        self._name = options.pop("config")
        self._component = component
        self._names_branches = names_branches
        self._call = 0
        self._timestep: Any = None
        self._context: AbstractContextManager[None] | None = None
        if not hasattr(component, "enable_cache"):
            raise InvalidRequest(path, self._name, f"nothing: {type(component).__name__} can't have a step cache")
        hooks_before = _hook_count(component)
        component.enable_cache(self._configuration(options))
        if _hook_count(component) == hooks_before:
            accepted = "identifiers that match names of the model's parts, for example " + ", ".join(_names(component))
            raise InvalidRequest(path, dict(table), accepted)
        disable: Any = torch.compiler.disable  # whatever is compiled, these count calls
        component.register_forward_pre_hook(disable(self._before), with_kwargs=True)
        component.register_forward_hook(disable(self._after), always_call=True)

    def begin(self) -> None:
        """Forget the job before."""
        self._component._reset_stateful_cache()
        self.next_step()

    def next_step(self) -> None:
        """A denoising step is done."""
        self._call = 0

    def _configuration(self, options: dict[str, Any]) -> Any:
        # Otherwise FasterCache splits a batch that holds both branches, and pipelines run them one after the other.
        if self._name == "FasterCacheConfig" and not options.setdefault("is_guidance_distilled", True):
            accepted = "true: pipelines compute the branches of guidance one by one"
            raise InvalidRequest(f"{self._path}.is_guidance_distilled", False, accepted)
        if self._name in BRANCHLESS:
            options["current_timestep_callback"] = lambda: self._timestep
        for name, value in options.items():
            if isinstance(value, list):
                options[name] = tuple(value) if "range" in name else value
            elif name.endswith("dtype"):
                options[name] = getattr(torch, str(value))
        return getattr(diffusers, self._name)(**options)

    def _before(self, _module: Any, _args: Any, kwargs: Mapping[str, Any]) -> None:
        if self._name in BRANCHLESS:
            self._timestep = _number(kwargs.get("timestep"))
            if self._call:
                raise InvalidRequest(
                    "guidance", "on", f"off, because the transformer's {self._name} can't tell branches"
                )
        elif not self._names_branches:
            self._context = self._component.cache_context(f"branch {self._call}")
            self._context.__enter__()
        self._call += 1

    def _after(self, _module: Any, _args: Any, _output: Any) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


def _number(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep or 0)


def _hook_count(component: torch.nn.Module) -> int:
    registries = (getattr(module, "_diffusers_hook", None) for module in component.modules())
    return sum(len(registry.hooks) for registry in registries if registry is not None)


def _names(component: torch.nn.Module) -> list[str]:
    """Names of parts that a cache may be meant for: of the attention in the first block."""
    names = [name for name, _module in component.named_modules() if name.rpartition(".")[2].startswith("attn")]
    return names[:2] or [name for name, _module in component.named_children()][:2]
