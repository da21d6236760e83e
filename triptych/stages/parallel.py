"""One role's stage on several devices of a machine, each in a process of its own, which compute one job together.

`ulysses` and `ring` divide the sequence of latents (diffusers' context parallelism), `cfg` the branches of guidance.
Every process runs the role's blocks on the same inputs and comes to the same values, so the first one's are the role's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from triptych.errors import InvalidRequest
from triptych.stages import Place
from triptych.stages.branches import Branches
from triptych.stages.library import ContextParallelConfig, ModelMixin, ParallelConfig

SEQUENCE_KINDS = ("ulysses", "ring")
GUIDANCE_KIND = "cfg"


def join(place: Place, device: torch.device) -> None:
    """Wait for the other processes and connect to them: by NCCL between CUDA devices, else by Gloo."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{place.rendezvous}",
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=place.timeout_s),
        device_id=device if device.type == "cuda" else None,
    )


def divide(kind: str, components: Mapping[str, Any], device: torch.device) -> Branches | None:
    """Have the role's models share their work with the other processes, which do the same.

    Returns the branches of guidance that jobs' guiders must be watched for; None for `ulysses` and `ring`.
    Raises InvalidRequest where no model of the role can be divided so, or its attention can't.
    """
    models = {name: component for name, component in components.items() if isinstance(component, ModelMixin)}
    if kind == GUIDANCE_KIND:
        return Branches(models.values(), device)
    divisible = {name: model for name, model in models.items() if getattr(model, "_cp_plan", None)}
    if not divisible:
        accepted = (
            f"{GUIDANCE_KIND}; diffusers has no plan for dividing the sequence of {', '.join(models) or 'nothing'}"
        )
        raise InvalidRequest("parallel", kind, accepted)
    for name, model in divisible.items():
        config = ContextParallelConfig(**{f"{kind}_degree": dist.get_world_size()})
        if device.type == "cpu":
            _set_up_on_cpu(model, config)
        try:
            model.enable_parallelism(config=config)
        except ValueError as error:
            raise InvalidRequest("parallel", kind, f"one that the attention of {name} can do: {error}") from error
    return None


def _set_up_on_cpu(model: Any, config: Any) -> None:
    """Diffusers takes the device from torch's accelerator, and a CPU is none."""
    if config.ring_degree > 1:
        raise InvalidRequest("parallel", "ring", "ulysses or cfg on a CPU: the attention that ring needs runs on CUDA")
    mesh = dist.device_mesh.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    whole = ParallelConfig(context_parallel_config=config)
    whole.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)

    def resolved(_config: Any) -> Any:
        model._parallel_config = whole
        return whole

    model._resolve_parallel_config = resolved
