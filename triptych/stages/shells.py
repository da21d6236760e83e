"""Config-only shells: models that a role doesn't hold, but whose configuration its blocks read.

A shell has the class, config, dtype and *buffers* of the real model, and `meta` parameters that take no memory.
Without it diffusers falls back to constants in silence (a VAE scale factor of 8, for example).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from triptych.errors import ModelInvalid
from triptych.stages.folder import folder_of, place_of
from triptych.stages.library import ComponentSpec, ConfigMixin, ModelMixin, init_empty_weights
from triptych.stages.library_errors import loading
from triptych.stages.weights import weight_files

_HALVES = (torch.float16, torch.bfloat16)


def build_shell(spec: ComponentSpec, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The shell of the model that `spec` names, with real buffers on `device`.

    Raises `ModelInvalid` where the model's class or configuration can't be read.
    """
    shell = build_empty(spec, dtype, include_buffers=False)
    with loading(place_of(spec)):
        _load_buffers(shell, spec)
    for module in shell.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return shell.eval()


def build_empty(spec: ComponentSpec, dtype: torch.dtype, *, include_buffers: bool) -> torch.nn.Module:
    """The model that `spec` names with `meta` parameters in `dtype`, and `meta` buffers if `include_buffers`.

    No weights are read. Raises `ModelInvalid` where the model's class or configuration can't be read.
    """
    cls: Any = spec.type_hint
    if cls is None:
        raise ModelInvalid(f"component {spec.name!r} names no class, so its configuration can't be read on its own")
    path = spec.pretrained_model_name_or_path
    where = {"subfolder": spec.subfolder or "", "revision": spec.revision}
    with (
        loading(f"the configuration of {place_of(spec)}"),
        _default_dtype(dtype),
        init_empty_weights(include_buffers=include_buffers),
    ):
        if issubclass(cls, ConfigMixin):
            empty: torch.nn.Module = cls.from_config(cls.load_config(path, **where))
        else:  # a model of transformers
            empty = cls(cls.config_class.from_pretrained(path, **where))
    return empty


def filled(shell: torch.nn.Module, *, shallow: bool) -> torch.nn.Module:
    """The shell with zeros for parameters: it computes shapes, and pages that are only read take no memory.

    A `shallow` one keeps one of each of the blocks that the model's class says are repeated.
    """
    if shallow:
        repeated = set(getattr(shell, "_repeated_blocks", None) or ())
        for module in list(shell.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.ModuleList) and {type(one).__name__ for one in child} <= repeated:
                    setattr(module, name, child[:1])
    zeros: dict[int, torch.nn.Parameter] = {}
    for module in shell.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                zero = torch.nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype), requires_grad=False)
                module._parameters[name] = zeros.setdefault(id(parameter), zero)
    return shell


def keep_dtypes(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model of `meta` parameters in `dtype`, with those in float32 that the libraries load so; it is changed."""
    kept = kept_in_float32(model, dtype)
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and kept.intersection([*name.split("."), leaf]):
                module._parameters[leaf] = torch.nn.Parameter(parameter.float(), requires_grad=False)
    return model


def kept_in_float32(model: torch.nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of names of parameters that the libraries load in float32, whatever dtype is asked for.

    diffusers does so for `_keep_in_fp32_modules` in both half precisions. transformers does so in float16 only, and
    for `_keep_in_fp32_modules_strict` in both.
    """
    if dtype not in _HALVES:
        return set()
    names: Sequence[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    strict: Sequence[str] = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return {*strict, *(names if isinstance(model, ModelMixin) or dtype == torch.float16 else ())}


def _load_buffers(shell: torch.nn.Module, spec: ComponentSpec) -> None:
    """Overwrites the persistent buffers with those in the weight files of a local folder."""
    persistent = set(shell.state_dict()) - {name for name, _ in shell.named_parameters(remove_duplicate=False)}
    if not persistent:
        return
    folder = folder_of(spec)
    for file in weight_files(folder if folder.is_dir() else _download(spec), spec.variant or ""):
        with safe_open(file, framework="pt") as tensors:
            for name in persistent.intersection(tensors.keys()):
                owner, _, leaf = name.rpartition(".")
                buffers = shell.get_submodule(owner)._buffers
                present = buffers[leaf]
                loaded = tensors.get_tensor(name)
                cast = present is not None and loaded.is_floating_point()
                buffers[leaf] = loaded.to(present.dtype) if cast else loaded  # type: ignore[union-attr]


def _download(spec: ComponentSpec) -> Path:
    """Fetches a component's weight files from the hub into its cache; returns their folder."""
    from huggingface_hub import snapshot_download

    inside = f"{spec.subfolder}/" if spec.subfolder else ""
    root = snapshot_download(
        spec.pretrained_model_name_or_path, revision=spec.revision, allow_patterns=[f"{inside}*.safetensors*"]
    )
    return Path(root, spec.subfolder or "")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes new parameters in `dtype`, as `from_pretrained` does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
