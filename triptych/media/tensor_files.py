"""Tensors as files: the safetensors format, read and written without torch.

Layout (https://github.com/huggingface/safetensors#format): u64 little-endian length of the header, the header as JSON
(`{NAME: {"dtype", "shape", "data_offsets"}}`), the tensors' bytes without gaps. Nothing in it can be code.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LENGTH_BYTES = 8
HEADER_BYTES_MAX = 100 << 20
"""Largest safetensors header, as the format's own reader has it."""
TENSORS_MAX = 4096
"""Most tensors in a file of a request: one layer's embeddings each, many times over."""
TENSOR_DIMENSIONS_MAX = 16
"""Most dimensions of a request's tensor: a video's latents have five."""
ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
"""Bits of an item by the format's dtypes."""
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""The bits of the exponent; where all are set, a number is infinite or none at all (IEEE 754)."""
_NUMPY_DTYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{letter}{bits}" for sign, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
}


class Tensor(NamedTuple):
    """A tensor as it stands in a file."""

    dtype: str
    """As safetensors writes it, for example `BF16`."""
    shape: tuple[int, ...]
    data: bytes
    """Its items in the order of rows, little-endian."""


def parse_header(head: bytes) -> dict[str, Any]:
    """The header's entries by tensor, without the metadata. Raises ValueError for what is no safetensors header."""
    try:
        header = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is no JSON ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise ValueError(f"the tensor {name[:80]!r} has no data_offsets")
    return header


def read(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises ValueError, with what is wrong, for anything but a whole and valid file.

    Each must take the bytes that its dtype and shape need, and together they fill the file without gaps or overlaps.
    """
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or not LENGTH_BYTES + 2 <= start <= len(data):
        raise ValueError(f"{len(data)} bytes that don't begin with a header's length")
    entries = parse_header(data[LENGTH_BYTES:start])
    if len(entries) > TENSORS_MAX:
        raise ValueError(f"{len(entries)} tensors; at most {TENSORS_MAX}")
    found: dict[str, Tensor] = {}
    filled = 0
    for name, entry in sorted(entries.items(), key=lambda one: one[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str) or dtype not in ITEM_BITS:
            raise ValueError(f"the dtype {str(dtype)[:40]!r}; known are {', '.join(ITEM_BITS)}")
        if not isinstance(shape, list) or len(shape) > TENSOR_DIMENSIONS_MAX or not all(map(_is_count, shape)):
            raise ValueError(f"no shape of at most {TENSOR_DIMENSIONS_MAX} dimensions")
        size_bytes = math.prod(shape) * ITEM_BITS[dtype] // 8
        if begin != filled or end != begin + size_bytes or start + end > len(data):
            raise ValueError(f"{dtype}{shape} takes {size_bytes} bytes, not those from {begin} to {end}")
        filled = end
        found[name] = Tensor(dtype, tuple(shape), data[start + begin : start + end])
    if start + filled != len(data):
        raise ValueError(f"{len(data) - start - filled} bytes that belong to no tensor")
    return found


def shown(data: bytes, name: str = "") -> str:
    """A tensor of a file that `read` takes, for a message, by the header alone; empty where the header has no such.

    The name may be empty where the file holds one.
    """
    try:
        entries = parse_header(data[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")])
    except ValueError:
        return ""
    entry = entries.get(name) or (next(iter(entries.values())) if len(entries) == 1 and not name else None)
    return words(entry["dtype"], entry["shape"]) if entry else ""


def words(dtype: str, shape: Sequence[int]) -> str:
    """A tensor for a message."""
    return f"{dtype} of shape {list(shape)}"


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds no infinity and no NaN. Numbers of eight bits and whole numbers always count as finite."""
    if tensor.dtype not in _EXPONENTS:
        return True
    unsigned, exponent = _EXPONENTS[tensor.dtype]
    import numpy as np  # late: clients that send no tensors do without it

    words = np.frombuffer(tensor.data, unsigned)
    mask = words.dtype.type(exponent)
    return not bool(((words & mask) == mask).any())


def tensor_of(value: Any) -> Tensor:
    """The tensor that a numpy array or a torch tensor holds. Raises ValueError for a dtype that the format lacks."""
    if hasattr(value, "detach"):  # torch's; numpy has no bfloat16
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            words = value.view(sys.modules["torch"].int16).numpy()
            return Tensor("BF16", tuple(value.shape), words.tobytes())
        value = value.numpy()
    import numpy as np

    array = np.asarray(value)
    if array.dtype.name not in _NUMPY_DTYPES:
        raise ValueError(f"the dtype {array.dtype.name}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(_NUMPY_DTYPES[array.dtype.name], array.shape, little.tobytes())


def write(tensors: Mapping[str, Tensor]) -> bytes:
    """A file of these tensors."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at a multiple of eight, as the format asks
    return len(head).to_bytes(LENGTH_BYTES, "little") + head + b"".join(tensor.data for tensor in tensors.values())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
