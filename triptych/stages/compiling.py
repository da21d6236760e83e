"""torch.compile of one component, by diffusers' `compile_repeated_blocks` or torch's `Module.compile`."""

from __future__ import annotations

from typing import Any

import torch

from triptych.errors import InvalidRequest
from triptych.means.options import Compile

GRAPHS_MAX = 256
"""Of one function: each size that is served has a graph, for each number of adapters that jobs have at once. After
torch's own 8 it would run uncompiled, with other bits, or fail if `fullgraph`. Torch has this bound for all together.
"""
_HALVES = ("encoder", "decoder")


def apply(path: str, component: torch.nn.Module, means: Compile) -> None:
    """Have the component compiled at its first call. Raises InvalidRequest for parts that it hasn't."""
    arguments: dict[str, Any] = {"backend": means.backend, "fullgraph": means.fullgraph, "dynamic": means.dynamic}
    if means.mode:
        arguments["mode"] = means.mode
    torch._dynamo.config.recompile_limit = GRAPHS_MAX
    model: Any = component
    if means.adapter_rank and not hasattr(model, "load_lora_adapter"):
        accepted = f"0, because diffusers swaps no adapters into a {type(component).__name__}"
        raise InvalidRequest(f"{path}.adapter_rank", means.adapter_rank, accepted)
    if means.what == "repeated_blocks":
        if means.modules:
            raise InvalidRequest(f"{path}.modules", means.modules, "nothing, unless what is whole")
        if not getattr(component, "_repeated_blocks", None):
            kind = type(component).__name__
            raise InvalidRequest(f"{path}.what", means.what, f"whole, because {kind} names no repeated blocks")
        model.compile_repeated_blocks(**arguments)
        return
    for name in means.modules or _parts(component):
        try:
            part = component.get_submodule(name)
        except AttributeError as error:
            known = ", ".join(child for child, _module in component.named_children())
            raise InvalidRequest(f"{path}.modules", name, f"parts of the model by path, for example {known}") from error
        part.compile(**arguments)


def _parts(component: torch.nn.Module) -> list[str]:
    """A VAE is called by its methods, and never as a module, so compiling it whole would do nothing."""
    halves = [name for name in _HALVES if isinstance(getattr(component, name, None), torch.nn.Module)]
    return halves if hasattr(component, "decode") and halves else [""]
