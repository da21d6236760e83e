"""Several calls of equal shape as one: their tensors joined along the first dimension, and the output split again.

A product of larger matrices may add up in another order, so a batch may change last bits; which shapes do depends on
the machine's kernels, not on values. `Batching` finds it out: the first calls of a kind run alone and as one, and are
compared. A model may look at a mask's values (one that hides nothing is left out), so that belongs to the kind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from triptych.transport import calls

KINDS_MAX = 1024
"""Most kinds of calls that are remembered: lengths of prompts times sizes of batches."""
EQUAL, ALWAYS, OFF = "equal", "always", "off"

Arguments = tuple[list[Any], dict[str, Any]]
Run = Callable[[Arguments], Any]


def kind_of(inputs: bytes, arguments: Arguments) -> tuple[bytes, tuple[bool, ...]]:
    """Calls of one kind may run as one: equal in all but the values of their tensors, and in which masks are full."""
    masks = (tensor for tensor in tensors_of(arguments) if not tensor.is_floating_point())
    return calls.structure_of(inputs), tuple(bool(tensor.all()) for tensor in masks)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in lists, tuples and mappings, at any depth."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def size_of(arguments: Arguments) -> int:
    """The first dimension that all tensors of a call share; 0 where they share none, so that it runs alone."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors_of(arguments)}
    return sizes.pop() if len(sizes) == 1 else 0


def joined(values: Sequence[Any]) -> Any:
    """Values of one structure as one, each tensor joined along its first dimension."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, dict):
        return {key: joined([value[key] for value in values]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(parts) for parts in zip(*values, strict=True))
    return first


def split(value: Any, size: int, count: int) -> list[Any]:
    """An output of `count` joined calls of `size` as one for each. Raises ValueError for a tensor of another size."""
    if isinstance(value, torch.Tensor):
        if not value.dim() or value.shape[0] != size * count:
            raise ValueError("an output that isn't one for each input")
        return [part.contiguous() for part in torch.split(value, size)]
    if isinstance(value, dict):  # a model output is one
        parts = {key: split(item, size, count) for key, item in value.items()}
        return [type(value)(**{key: part[index] for key, part in parts.items()}) for index in range(count)]
    if isinstance(value, list | tuple):
        items = [split(item, size, count) for item in value]
        return [type(value)(item[index] for item in items) for index in range(count)]
    return [value] * count


def same(left: Any, right: Any) -> bool:
    """Whether two outputs are equal to the bit."""
    ours, theirs = tensors_of(left), tensors_of(right)
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and torch.equal(_bits(one), _bits(other))
        for one, other in zip(ours, theirs, strict=True)
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


class Batching:
    """Runs calls of one kind as one, where it may. Belongs to the models' thread."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._is_equal: OrderedDict[tuple[Any, int], bool] = OrderedDict()

    def run(self, kind: Any, arguments: Sequence[Arguments], run: Run) -> tuple[list[Any], int]:
        """The output of each call, and how many of them ran as one."""
        count, size = len(arguments), size_of(arguments[0])
        if count == 1 or not size or self._mode == OFF:
            return [run(one) for one in arguments], 1
        known = self._is_equal.get((kind, count))
        if known is None and self._mode != ALWAYS:
            alone = [run(one) for one in arguments]
            together = _together(arguments, size, run)
            self._note(kind, count, is_equal=together is not None and all(map(same, together, alone)))
            return alone, 1
        if known is not False:
            if (together := _together(arguments, size, run)) is not None:
                return together, count
            self._note(kind, count, is_equal=False)
        return [run(one) for one in arguments], 1

    def _note(self, kind: Any, count: int, *, is_equal: bool) -> None:
        self._is_equal[kind, count] = is_equal
        if len(self._is_equal) > KINDS_MAX:
            self._is_equal.popitem(last=False)


def _together(arguments: Sequence[Arguments], size: int, run: Run) -> list[Any] | None:
    """The output of each of these calls, run as one; None where the model refuses that, or has no output for each."""
    try:
        return split(run(joined(arguments)), size, len(arguments))
    except ValueError:
        return None
