"""What crosses from one role to the next, derived from the blocks' own declarations.

A state value crosses as it stands (None included) if a later role's blocks declare it as input, name it in
`block_trigger_inputs` at any depth, or take it with a group. Beside the state's values, which keep their names, these
reserved keys cross (`RESERVED_PREFIX`; no input of a pipeline can have a dot in its name):

    triptych.settings        the job's settings: {"seed", "preview_every_steps", "overrides", "adapters"}
    triptych.kwargs_mapping  groups of state values: {group: [name, ...]}
    triptych.rng             states of the global generators: {"cpu": uint8 tensor, "cuda": uint8 tensor where used}
    triptych.device_type     kind of device that the values were made on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from triptych.errors import InvalidRequest
from triptych.model.fields import LATENT
from triptych.model.inputs import RESERVED_PREFIX as RESERVED_PREFIX
from triptych.model.inputs import SETTINGS as SETTINGS
from triptych.stages import parts
from triptych.stages.library import LoopSequentialPipelineBlocks, ModularPipelineBlocks, PipelineState

KWARGS_MAPPING = RESERVED_PREFIX + "kwargs_mapping"
RNG = RESERVED_PREFIX + "rng"
DEVICE_TYPE = RESERVED_PREFIX + "device_type"


class Needs(NamedTuple):
    """What blocks take from the state: names of values, and groups of values (`kwargs_type`)."""

    names: frozenset[str]
    groups: frozenset[str]

    @classmethod
    def of(cls, blocks: Iterable[ModularPipelineBlocks]) -> Needs:
        """The union over several roles' blocks."""
        names: set[str] = set()
        groups: set[str] = set()
        for block in blocks:
            for parameter in block.inputs:
                if parameter.name:
                    names.add(parameter.name)
                if parameter.kwargs_type:
                    groups.add(parameter.kwargs_type)
            for nested in walk(block):
                names.update(name for name in getattr(nested, "block_trigger_inputs", None) or () if name)
        return cls(frozenset(names), frozenset(groups))


def walk(block: ModularPipelineBlocks) -> Iterator[ModularPipelineBlocks]:
    """The block and everything below it, parents first."""
    yield block
    for nested in block.sub_blocks.values():
        yield from walk(nested)


def leaves(block: ModularPipelineBlocks) -> Iterator[ModularPipelineBlocks]:
    """The blocks that do the work, in the order of execution; branches of a condition one after another.

    A loop counts as one, because it declares values of its own.
    """
    if not block.sub_blocks or isinstance(block, LoopSequentialPipelineBlocks):
        yield block
    else:
        for nested in block.sub_blocks.values():
            yield from leaves(nested)


def final_outputs(block: ModularPipelineBlocks) -> list[str]:
    """Names that the last roles' blocks yield and none of them takes up again.

    What a composed block declares may differ from what it yields, so this is the union over its leaves: a name counts
    where the last leaf that mentions it mentions it as output.
    """
    names: dict[str, bool] = {}
    for leaf in leaves(block):
        yielded = [output.name for output in leaf.intermediate_outputs if output.name]
        names.update({parameter.name: False for parameter in leaf.inputs if parameter.name in names})
        names.update(dict.fromkeys(yielded, True))
    return [name for name, final in names.items() if final]


def pack(state: PipelineState, needs: Needs) -> dict[str, object]:
    """The state's values that `needs` names, and the groups' mapping."""
    mapping = {group: list(names) for group, names in state.kwargs_mapping.items() if group in needs.groups}
    wanted = needs.names.union(*mapping.values())
    values: dict[str, object] = {name: parts.plain(state.values[name]) for name in state.values if name in wanted}
    values[KWARGS_MAPPING] = mapping
    return values


def latents(state: PipelineState, blocks: ModularPipelineBlocks) -> dict[str, object]:
    """The latents that a decoder's blocks would decode, as the transformer left them; of lists each item by itself.

    Raises `InvalidRequest` where these blocks take none.
    """
    names = dict.fromkeys(parameter.name for parameter in blocks.inputs if "latent" in (parameter.name or ""))
    found: dict[str, object] = {}
    for name in names:
        value = state.values.get(name)
        items = {f"{name}-{n}": item for n, item in enumerate(value)} if isinstance(value, list) else {name: value}
        found.update((key, item) for key, item in items.items() if isinstance(item, torch.Tensor))
    if not found:
        accepted = "pil, np or pt; this pipeline's decoder takes no latents"
        raise InvalidRequest("parameters.output_type", LATENT, accepted)
    return found


def unpack(inputs: Mapping[str, object], device: torch.device) -> PipelineState:
    """The state that `pack` took values from. Between kinds of devices its tensors move to `device`."""
    mapping: Any = inputs.get(KWARGS_MAPPING, {})
    values = {name: value for name, value in inputs.items() if not name.startswith(RESERVED_PREFIX)}
    source_type = inputs.get(DEVICE_TYPE, device.type)
    if source_type != device.type:
        values = {name: relocate(value, str(source_type), device) for name, value in values.items()}
    return PipelineState(values=values, kwargs_mapping={group: list(names) for group, names in mapping.items()})


def relocate(value: Any, source_type: str, device: torch.device) -> Any:
    """The value with every tensor that lies on a device of `source_type` moved to `device`, at any depth."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device) if tensor.device.type == source_type else tensor

    return parts.each_tensor(value, moved)
