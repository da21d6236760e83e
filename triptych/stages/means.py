"""A role's means on its models, each by diffusers', accelerate's or torch's own call.

The order is fixed: quantization, device map and dtype while the weights are read; then layout, attention, tiling and
slicing; then the device, or offload; then a step cache; compilation last, since it sees what stands before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from triptych.errors import InvalidRequest, TriptychError
from triptych.means.options import Compile, ComponentMeans, Offload, ProcessMeans, RoleMeans, given
from triptych.means.tables import KEEPS, LOSSY, accepted_keys
from triptych.roles import role_name
from triptych.stages import compiling, quantization, reached_code
from triptych.stages.caches import StepCache
from triptych.stages.handoff import walk
from triptych.stages.library import (
    ModelMixin,
    apply_group_offloading,
    attention_backend,
    cpu_offload,
    diffusers,
    dispatch_model,
)
from triptych.stages.library_errors import said
from triptych.v1.dispatch_pb2 import Role

_ON_LOAD = ("quantization", "gguf", "device_map")
"""Options that decide where weights are by the time that they are loaded."""


class StageMeans:
    """The means of one stage. `known` are the pipeline's components, `held` those that the role loads."""

    def __init__(self, means: RoleMeans, known: Sequence[str], held: Sequence[str], blocks: Sequence[Any] = ()) -> None:
        """Raises InvalidRequest for a component that the pipeline hasn't."""
        for name in means.components:
            if name not in known:
                accepted = accepted_keys(name, known).replace("keys", "pipeline's components", 1)
                raise InvalidRequest(f"components.{name}", "a table", accepted)
        self._means = means
        self._held = held
        self._caches: list[StepCache] = []
        nested = [type(one) for block in blocks for one in walk(block)]
        self._names_branches = "cache_context" in reached_code.names_used(nested)

    def dtype_of(self, name: str, default: torch.dtype) -> torch.dtype:
        """The element type of a component, also of one that another role holds."""
        dtype = self._means.of(name).dtype
        return getattr(torch, dtype) if dtype else default

    def compile_of(self, name: str) -> Compile | None:
        """How a component is compiled."""
        return self._means.of(name).compile

    def place_of(self, name: str, default: torch.device) -> torch.device | None:
        """The device that a component's parameters will say they are on; None where only loading it tells."""
        means = self._means.of(name)
        if means.device_map or means.offload is not None:
            return None
        return torch.device(means.device) if means.device else default

    def check_elsewhere(self, name: str) -> None:
        """Raise InvalidRequest where a component has means, though another process runs it."""
        for option, value, _bits in given(self._means.of(name)):
            accepted = "nothing, because the text-encoder process runs this component"
            raise InvalidRequest(f"components.{name}.{option}", value, accepted)

    def arguments(self, spec: Any) -> dict[str, Any]:
        """What `from_pretrained` is told beside a component's place and dtype."""
        means, path = self._means.of(spec.name), f"components.{spec.name}"
        told: dict[str, Any] = {}
        if means.quantization is not None:
            told["quantization_config"] = quantization.configuration(f"{path}.quantization", spec, means.quantization)
        if means.device_map:
            told["device_map"] = means.device_map
        if means.max_memory:
            told["max_memory"] = {int(key) if key.isdigit() else key: size for key, size in means.max_memory.items()}
        if means.offload_folder:
            told["offload_folder"] = means.offload_folder
        return told

    def single_file(self, spec: Any, dtype: torch.dtype) -> Any:
        """A component that comes from a GGUF file; None where it doesn't."""
        means = self._means.of(spec.name)
        return quantization.single_file(f"components.{spec.name}", spec, means, dtype) if means.gguf else None

    def place(self, name: str, component: Any, device: torch.device) -> Any:
        """The loaded component on its device, with all its means. Raises InvalidRequest for what it can't have."""
        means, path = self._means.of(name), f"components.{name}"
        if means.memory_format:
            with _told(path, "memory_format", means):
                _lay_out(component, means.memory_format)
        if means.attention:
            with _told(path, "attention", means):
                _attend(component, means.attention)
        for option, method in (("tiling", "enable_tiling"), ("slicing", "enable_slicing")):
            if value := getattr(means, option):
                with _told(path, option, means):
                    _method(component, method)(**(value if isinstance(value, Mapping) else {}))
        component = _put(path, component, means, device)
        if means.cache is not None:
            with _told(path, "cache", means):
                cache = StepCache(f"{path}.cache", component, means.cache, names_branches=self._names_branches)
                self._caches.append(cache)
        if means.compile is not None:
            with _told(path, "compile", means):
                compiling.apply(f"{path}.compile", component, means.compile)
        return component

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around each job: the role's arithmetic, and caches that know no job before."""
        for cache in self._caches:
            cache.begin()
        with arithmetic(self._means.process):
            yield

    def next_step(self) -> None:
        """A denoising step is done."""
        for cache in self._caches:
            cache.next_step()

    def settings(self) -> dict[str, str]:
        """All means that change bits, by name: workers of a role must agree in each. Empty without such means."""
        found = {f"process.{name}": value for name, value, bits in given(self._means.process) if bits != KEEPS}
        for name, means in self._means.components.items():
            if name in self._held:
                found |= {f"{name}.device": torch.device(means.device).type} if means.device else {}
                found |= {f"{name}.{key}": value for key, value, bits in given(means) if bits != KEEPS}
                found |= {f"{name}.{key}": value for key, value in quantization.identity(means).items()}
            elif means.dtype:
                found[f"{name}.dtype"] = means.dtype
        return {
            name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for name, value in found.items()
        }

    def lossy(self, role: Role.ValueType) -> list[str]:
        """The lossy means in use, each as `role: component.option configuration`."""
        return sorted(
            f"{role_name(role)}: {name}.{key} {value['config']}"
            for name, means in self._means.components.items()
            for key, value, bits in given(means)
            if bits == LOSSY and name in self._held and isinstance(value, Mapping)
        )


@contextmanager
def arithmetic(means: ProcessMeans) -> Iterator[None]:
    """Torch's precision of float32 products and convolutions, for the length of the block."""
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    try:
        if means.matmul_precision:
            torch.set_float32_matmul_precision(means.matmul_precision)
        if means.cudnn_tf32 is not None:
            torch.backends.cudnn.allow_tf32 = means.cudnn_tf32
        if means.cudnn_benchmark is not None:
            torch.backends.cudnn.benchmark = means.cudnn_benchmark
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.cudnn.benchmark = before[2]


@contextmanager
def _told(path: str, option: str, means: ComponentMeans) -> Iterator[None]:
    """What a library raises, as InvalidRequest that names the option."""
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        value = getattr(means, option)
        raise InvalidRequest(f"{path}.{option}", value, f"what works here ({said(error)})") from error


def _method(component: Any, name: str) -> Any:
    method = getattr(component, name, None)
    if method is None:
        raise TypeError(f"{type(component).__name__} has no {name}")
    return method


def _lay_out(component: torch.nn.Module, memory_format: str) -> None:
    """Only weights of convolutions have such a layout, and torch converts those of one rank at a time."""
    convert: Any = {
        "channels_last": torch.nn.utils.convert_conv2d_weight_memory_format,
        "channels_last_3d": torch.nn.utils.convert_conv3d_weight_memory_format,
    }[memory_format]
    convert(component, getattr(torch, memory_format))


def _attend(component: Any, backend: str) -> None:
    """Diffusers would also make it the process's default, for models that aren't meant: that is put back."""
    with attention_backend(diffusers.utils.constants.DIFFUSERS_ATTN_BACKEND):
        _method(component, "set_attention_backend")(backend)


def _put(path: str, component: Any, means: ComponentMeans, device: torch.device) -> Any:
    """The component where it computes, or where it waits."""
    if means.offload is not None:
        with _told(path, "offload", means):
            _offload(f"{path}.offload", component, means.offload, device)
        return component
    if means.device:
        with _told(path, "device", means):
            return dispatch_model(component, {"": torch.device(means.device)}, force_hooks=True)
    if means.device_map or (means.quantization or {}).get("config") == "BitsAndBytesConfig":
        return component  # it was put there while it was read
    return component.to(device)


def _offload(path: str, component: Any, offload: Offload, device: torch.device) -> None:
    if offload.kind == "sequential":
        cpu_offload(component, device, offload_buffers=True)
        return
    if offload.use_stream and device.type != "cuda":
        raise InvalidRequest(f"{path}.use_stream", True, f"false on {device.type}: streams need a CUDA device")
    is_blockwise = offload.offload_type == "block_level"
    arguments: dict[str, Any] = {
        "onload_device": device,
        "offload_device": torch.device(offload.device),
        "offload_type": offload.offload_type,
        "num_blocks_per_group": offload.num_blocks_per_group if is_blockwise else None,
        "non_blocking": offload.non_blocking,
        "use_stream": offload.use_stream,
        "record_stream": offload.record_stream,
        "low_cpu_mem_usage": offload.low_cpu_mem_usage,
        "offload_to_disk_path": offload.folder or None,
    }
    if isinstance(component, ModelMixin):
        component.enable_group_offload(**arguments)
    else:
        apply_group_offloading(component, **arguments)
