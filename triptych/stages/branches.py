"""Guidance branches on several processes: each computes some of a step's predictions, and all get all of them.

Diffusers' guiders say which branch comes next (`prepare_models`), and take the predictions of all at the step's end
(`__call__`). In between, a model's call for another process's branch returns a placeholder. That is full of NaN: a
pipeline that reads it before the guider does fails, where a wrong number would go unseen. On equal devices the bits are
those of one process, because the arithmetic is.

A call whose arguments have shapes that weren't seen before is computed by all, which shows what its result looks like.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree

from triptych.stages.library import BaseGuidance

NONE = -1
"""No branch: the call belongs to the whole step."""


class Branches:
    """Shares a step's branches among the processes of the default group, in turns by the branch's number."""

    def __init__(self, models: Iterable[torch.nn.Module], device: torch.device) -> None:
        """Takes over `forward` of the models, which lie on `device`. Calls outside of a branch stay as they are."""
        self._device = device
        self._rank = dist.get_rank()
        self._count = dist.get_world_size()
        self._branch = NONE
        self._shapes: dict[object, Any] = {}
        """What calls return, on the meta device, by the model and the shapes of the arguments."""
        for number, model in enumerate(models):
            model.forward = self._shared(number, model.forward)

    def watch(self, guiders: Iterable[BaseGuidance]) -> None:
        """Follow a job's own guiders through their steps."""
        for guider in guiders:
            kind = type(guider)
            guider.__class__ = type(kind.__name__, (_Watched, kind), {})
            guider.__dict__["branches"] = self

    def step(self) -> None:
        """A step begins or ends."""
        self._branch = NONE

    def next(self) -> None:
        """The next branch begins."""
        self._branch += 1

    def exchange(self, data: Iterable[Any]) -> None:
        """Give every process the prediction of every branch, each from the process whose turn it was."""
        self.step()
        for branch, state in enumerate(data):
            state.noise_pred = state.noise_pred.contiguous()
            dist.broadcast(state.noise_pred, src=branch % self._count)

    def _shared(self, number: int, forward: Any) -> Any:
        @functools.wraps(forward)
        def shared(*arguments: Any, **named: Any) -> Any:
            if self._branch == NONE:
                return forward(*arguments, **named)
            key = (number, _shapes(arguments), _shapes(named))
            if key in self._shapes and self._branch % self._count != self._rank:
                return _pytree.tree_map(lambda leaf: _placeholder(leaf, self._device), self._shapes[key])
            result = forward(*arguments, **named)
            if key not in self._shapes:
                self._shapes[key] = _pytree.tree_map(_outline, result)
            return result

        return shared


class _Watched:
    """What is added to the class of a job's guider."""

    branches: Branches

    def set_state(self, *arguments: Any, **named: Any) -> None:
        self.branches.step()
        super().set_state(*arguments, **named)  # type: ignore[misc]

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        self.branches.next()
        super().prepare_models(denoiser)  # type: ignore[misc]

    def __call__(self, data: list[Any]) -> Any:
        self.branches.exchange(data)
        return super().__call__(data)  # type: ignore[misc]


def _shapes(values: Any) -> tuple[object, ...]:
    """Of each tensor at any depth its place, shape and dtype."""
    leaves = _pytree.tree_leaves(dict(values) if isinstance(values, Mapping) else values)
    return tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else None for leaf in leaves)


def _outline(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, torch.Tensor) else leaf


def _placeholder(leaf: Any, device: torch.device) -> Any:
    """Of an outline, a tensor of its shape that can't be taken for a result."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return torch.full(leaf.shape, math.nan if leaf.is_floating_point() else 0, dtype=leaf.dtype, device=device)
