"""NaN and infinity end a job where they first appear: NaN anywhere, infinity anywhere but in masks.

A mask may hold minus infinity on purpose ("not this one"). Pictures can't hold NaN, so a decoder is judged by what the
parts of its models yield (`Watch`). The least and the greatest number tell in one pass: both are NaN where any is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from triptych.errors import NotFinite


def check(role: str, outputs: Mapping[str, object]) -> None:
    """Raise NotFinite for the first of a role's outputs that holds NaN, or infinity outside a mask."""
    for name, value in outputs.items():
        for path, tensor in _tensors(name, value):
            if what := _found(tensor, nan_only="mask" in path):
                raise _not_finite(role, path, what)


class Watch:
    """Notes the first part of a decoder's models that yields numbers that aren't finite.

    Parts are modules and their direct children: a VAE is called by its methods and not as a module, its decoder is.
    """

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._first: tuple[str, str] | None = None
        for name, component in components.items():
            if isinstance(component, torch.nn.Module):
                component.register_forward_hook(self._hook(name))
                for child_name, child in component.named_children():
                    child.register_forward_hook(self._hook(f"{name}.{child_name}"))

    def begin(self) -> None:
        """Forget the job before."""
        self._first = None

    def check(self, role: str, outputs: Mapping[str, object]) -> None:
        """Raise NotFinite where the outputs are of a kind that can't hold what their makers yielded."""
        if self._first is not None and any(not _can_hold(value) for value in outputs.values()):
            raise _not_finite(role, *self._first)

    def _hook(self, path: str) -> Callable[[Any, Any, Any], None]:
        def note(_module: Any, _inputs: Any, yielded: Any) -> None:
            if self._first is not None:
                return
            values = yielded.to_tuple() if hasattr(yielded, "to_tuple") else yielded
            for _path, tensor in _tensors(path, values):
                if what := _found(tensor, nan_only=False):
                    self._first = (path, what)
                    return

        # Else a compiled part would be compiled again for each job's numbers.
        disable: Callable[[Any], Callable[[Any, Any, Any], None]] = torch.compiler.disable
        return disable(note)


def _can_hold(value: object) -> bool:
    tensors = list(_tensors("", value))
    return bool(tensors) and all(_is_inexact(tensor) for _path, tensor in tensors)


def _tensors(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Tensors and arrays in a value, at any depth, with their paths."""
    if isinstance(value, torch.Tensor | np.ndarray):
        yield path, value
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from _tensors(f"{path}.{key}", item)


def _is_inexact(tensor: Any) -> bool:
    if isinstance(tensor, np.ndarray):
        return bool(np.issubdtype(tensor.dtype, np.inexact))
    return bool(tensor.is_floating_point() or tensor.is_complex())


def _found(tensor: Any, *, nan_only: bool) -> str:
    """`NaN`, `infinity`, or nothing."""
    if not _is_inexact(tensor) or 0 in tensor.shape:
        return ""
    least, most = _array_range(tensor) if isinstance(tensor, np.ndarray) else _tensor_range(tensor)
    if math.isnan(least) or math.isnan(most):
        return "NaN"
    return "infinity" if not nan_only and (math.isinf(least) or math.isinf(most)) else ""


def _array_range(array: Any) -> tuple[float, float]:
    real = np.ascontiguousarray(array).view(array.real.dtype) if np.iscomplexobj(array) else array
    return float(real.min()), float(real.max())


@torch.no_grad()
def _tensor_range(tensor: torch.Tensor) -> tuple[float, float]:
    if tensor.is_meta:
        return 0.0, 0.0
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    least, most = (real.float() if real.element_size() == 1 else real).aminmax()  # torch orders none of 8 bits
    return float(least), float(most)


def _not_finite(role: str, path: str, what: str) -> NotFinite:
    return NotFinite(f"the {role} made {what} in {path}; workers with nonfinite set to allow let that pass")
