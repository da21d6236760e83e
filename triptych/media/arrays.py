"""A pipeline's own numbers as files: NPY, safetensors, and JSON for what is no array."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from triptych.errors import InvalidRequest
from triptych.media.clips import to_array

_METADATA_KEY = "triptych"
"""One key with all of it: safetensors writes several in another order each time."""


def encode_npy(array: npt.NDArray[Any]) -> bytes:
    """An NPY file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def encode_safetensors(values: Mapping[str, object], metadata_json: str = "") -> bytes:
    """A safetensors file of arrays and tensors by name. Raises InvalidRequest for numbers that it has no type for."""
    import safetensors.numpy

    metadata = {_METADATA_KEY: metadata_json} if metadata_json else None
    torch = sys.modules.get("torch")
    try:
        if torch is None or not any(isinstance(value, torch.Tensor) for value in values.values()):
            arrays = {name: np.ascontiguousarray(value) for name, value in values.items()}
            return safetensors.numpy.save(arrays, metadata)
        import safetensors.torch

        tensors = {  # as tensors, because numpy lacks bfloat16
            name: (value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(value)).contiguous()
            for name, value in values.items()
        }
        return safetensors.torch.save(tensors, metadata)
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InvalidRequest("output_format", "safetensors", f"npy, for numbers of these types ({error})") from error


def encode_json(name: str, value: object) -> bytes:
    """A JSON file. Raises InvalidRequest for values that JSON doesn't have."""
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_listed_numbers)
    except (TypeError, ValueError) as error:
        accepted = "pictures, audio, arrays or JSON values"
        raise InvalidRequest(f"output {name}", type(value).__name__, accepted) from error
    return text.encode()


def _listed_numbers(value: object) -> object:
    array = np.asarray(value) if isinstance(value, np.generic) else to_array(value)
    if array is None:
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return array.tolist()
