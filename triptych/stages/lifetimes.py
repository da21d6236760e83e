"""Peak of the memory that a model's calls take beside its weights, from the lifetimes of tensors on the meta device.

A tensor on torch's `meta` device has a shape, a dtype and a storage with a size, but no bytes. A model whose weights
lie there computes no values, yet makes and drops the same tensors as it would elsewhere. `Lifetimes` adds each new
storage when it appears and takes it away when Python drops it; the largest sum is the peak. It is what an allocator
without fragments would need. What kernels take for themselves while they run (workspaces of convolutions, for example)
isn't seen.

Attention counts as fused: its scores, which grow with the square of the length, are never a tensor, as in
FlashAttention and the other fused kernels of `scaled_dot_product_attention`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

META = torch.device("meta")


class Lifetimes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive; a context manager. `peak_bytes` is the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._fused = _FusedAttention()

    def __enter__(self) -> Lifetimes:
        self._fused.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._fused.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype is torch.bool:
            return False  # whether a mask can be left out, for example: it can't
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, made)
        return made

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the tensor's storage from now until it is dropped, unless it counts already; returns the tensor."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive and self._alive[key]() is storage:
            return tensor
        size_bytes = storage.nbytes()
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

        def drop(_reference: object) -> None:
            self.live_bytes -= size_bytes
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, drop)
        return tensor

    def ignore(self, tensors: Any) -> None:
        """Never count these tensors' storages: weights, which lie elsewhere in the sum. They must stay alive."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._alive[id(storage)] = weakref.ref(storage)


class _FusedAttention(TorchFunctionMode):
    """Attention whose result is made at once. On `meta`, torch would go the way that makes the scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, value = (args[index] if index < len(args) else named[key] for index, key in _QUERY_AND_VALUE)
            if query.is_meta:
                return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **named)


_QUERY_AND_VALUE = ((0, "query"), (2, "value"))
