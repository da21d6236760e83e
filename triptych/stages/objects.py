"""A request's values as the blocks take them: tensors of torch, lists of frames, objects of diffusers' own classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from triptych.errors import InvalidRequest
from triptych.media.decoding.values import Frames, Sound
from triptych.media.tensor_files import Tensor
from triptych.security.privacy import redact, texts_in
from triptych.stages import hints

_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
"""By the names of safetensors."""
_SAMPLE_RATE, _FRAME_RATE = "sample_rate", "fps"
"""Fields of diffusers' objects beside sound and frames: what a file says, where a request doesn't."""


def ready(value: Any, device: torch.device, classes: tuple[type, ...] = (), place: str = "") -> Any:
    """The value with files and tensors as the blocks take them, at any depth, and mappings as objects of `classes`.

    Raises `InvalidRequest`, with the place within the value, where a class refuses its fields.
    """
    if isinstance(value, Tensor):
        return as_torch(value).to(device)
    if isinstance(value, Sound):
        return torch.from_numpy(np.array(value.samples_CN)).to(device)
    if isinstance(value, dict) and classes:
        return _object(value, device, classes, place)
    if isinstance(value, dict):
        return {name: ready(one, device, (), f"{place}.{name}") for name, one in value.items()}
    if isinstance(value, list):  # also `Frames`, which no block and no room knows
        return [ready(one, device, classes, f"{place}[{number}]") for number, one in enumerate(value)]
    return value


def as_torch(tensor: Tensor) -> torch.Tensor:
    """The tensor in memory of its own."""
    if not tensor.data:
        return torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
    return torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)


def _object(value: Mapping[str, Any], device: torch.device, classes: Iterable[type], place: str) -> Any:
    kind = _chosen(value, classes, place)
    fields = hints.fields_of(kind)
    made = {}
    for name, one in value.items():
        inner = hints.meaning(name, fields[name][0]).classes
        made[name] = ready(one, device, inner, f"{place}.{name}")
        rate = _rate_of(one)
        if rate is not None and rate[0] in fields and value.get(rate[0]) is None:
            made[rate[0]] = rate[1]
    try:
        return kind(**made)
    except (ValueError, TypeError) as error:
        said = redact(" ".join(str(error).split()), texts_in(value))
        raise InvalidRequest(
            place, f"fields {sorted(value)}", f"what {kind.__name__} takes; it says: {said}"
        ) from error


def _rate_of(value: Any) -> tuple[str, float] | None:
    """The field for the rate that a file has, and the rate."""
    if isinstance(value, Sound):
        return _SAMPLE_RATE, value.sample_rate
    if isinstance(value, Frames) and value.frames_per_second:
        return _FRAME_RATE, value.frames_per_second
    return None


def _chosen(value: Mapping[str, Any], classes: Iterable[type], place: str) -> type:
    """The one class that has all of these fields and needs no other."""
    fitting = []
    for kind in classes:
        fields = hints.fields_of(kind)
        needed = {name for name, (_hint, default) in fields.items() if default is dataclasses.MISSING}
        if needed <= value.keys() <= fields.keys():
            fitting.append(kind)
    if len(fitting) == 1:
        return fitting[0]
    options = "; ".join(f"{kind.__name__}: {', '.join(hints.fields_of(kind))}" for kind in classes)
    raise InvalidRequest(place, f"fields {sorted(value)}", f"the fields of one of {options}")
