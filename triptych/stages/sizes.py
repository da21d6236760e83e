"""Bytes of a model's weights, from its configuration alone.

They are what `Stage.component_bytes` says of a loaded role: parameters and saved buffers, shared ones once, each in the
dtype that the libraries load it in.
"""

from __future__ import annotations

import torch

from triptych.planning.fleet import ComponentSize
from triptych.planning.quantization import Kind
from triptych.stages.library import ComponentSpec
from triptych.stages.shells import build_empty, keep_dtypes, kept_in_float32


def component_size(spec: ComponentSpec, dtype: torch.dtype, quantization: Kind | None = None) -> ComponentSize:
    """The size of the model that `spec` names.

    Raises `ModelInvalid` where the model's class or configuration can't be read.
    """
    model = as_loaded(spec, dtype)
    quantized = _quantized(model, kept_in_float32(model, dtype)) if quantization else set()
    counted: set[int] = set()
    weight_bytes = parameter_count = 0
    parameters = {id(parameter) for parameter in model.parameters()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in counted:
            continue
        counted.add(id(tensor))
        parameter_count += tensor.numel() if id(tensor) in parameters else 0
        if quantization is not None and name in quantized:
            rows, columns = tensor.shape
            weight_bytes += quantization.weight_bytes(rows, columns, dtype.itemsize)
        else:
            weight_bytes += tensor.nbytes
    return ComponentSize(spec.name, type(model).__name__, parameter_count, weight_bytes)


def as_loaded(spec: ComponentSpec, dtype: torch.dtype) -> torch.nn.Module:
    """The model that `spec` names on the `meta` device, each part in the dtype in which the libraries load it.

    Raises `ModelInvalid` where the model's class or configuration can't be read.
    """
    return keep_dtypes(build_empty(spec, dtype, include_buffers=True), dtype).eval()


def _quantized(model: torch.nn.Module, kept: set[str]) -> set[str]:
    """Names of the weights that diffusers' and transformers' quantizers take: of linear layers that aren't kept.

    transformers keeps the layer that makes a language model's words, too.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not kept.intersection(name.split("."))
    }
