"""Tensors and numpy arrays to bytes and back, with the same dtype, shape and strides.

The *span* crosses: the memory from the first to the last element of the tensor, in its order there. A dense tensor,
permuted or not, is its span and isn't copied. An expanded one sends each element once. One with gaps (a slice of a
larger tensor) sends zeros for its gaps, since strides can't be kept without them. So decoding has one rule: the same
strides over the same span.

torch is imported only when there is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.v1 import tensor_pb2

if TYPE_CHECKING:
    import torch

DIMENSIONS_MAX = 32
"""Most dimensions of a tensor. Models use at most six, and numpy's old limit is 32."""
ELEMENT_COUNT_MAX = 2**62
"""Most elements, including expanded ones. Beyond it the 64-bit products of torch and numpy overflow."""
_ARRAY_DTYPES = frozenset(
    np.dtype(code).name
    for code in (bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)
"""Names of numpy's dtypes that cross. torch uses the same names."""


def span_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of memory from the first to the last element of such a tensor; 0 if it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def encode_tensor(path: str, tensor: torch.Tensor) -> tuple[tensor_pb2.TensorRef, memoryview]:
    """The reference (without offset) and the bytes of a tensor. A dense one on CPU isn't copied.

    Raises InvalidRequest with `path` for sparse, quantized, meta and subclassed tensors.
    """
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        raise InvalidRequest(path, type(tensor).__name__, "a plain strided tensor")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta or dtype.startswith("q") or tensor.dim() > DIMENSIONS_MAX:
        accepted = f"a tensor with data, not quantized, of at most {DIMENSIONS_MAX} dimensions"
        raise InvalidRequest(path, f"{dtype} on {tensor.device}", accepted)
    shape = tuple(tensor.shape)
    strides = tensor.stride()
    ref = tensor_pb2.TensorRef(name=path, dtype=dtype, shape=shape, strides=strides, device_type=tensor.device.type)
    count = span_elements(shape, strides)
    if count == 0:
        return ref, memoryview(b"")
    flat = tensor.detach().as_strided((count,), (1,), tensor.storage_offset()).resolve_conj().resolve_neg()
    flat = _without_gaps(flat, shape, strides).cpu()
    return ref, flat.view(torch.uint8).numpy().data


def decode_tensor(ref: tensor_pb2.TensorRef, room: memoryview, device: str) -> torch.Tensor:
    """The tensor that `ref` names, on CPU in `room`'s memory, else in its own.

    Raises SourceCorrupt if the reference doesn't fit the room or names no dtype.
    """
    import torch

    dtype = torch_dtype(f"tensor {ref.name!r}", ref.dtype)
    if ref.dtype.startswith("q"):  # quantized types are more than their bytes
        raise SourceCorrupt(f"tensor {ref.name!r}: no dtype {ref.dtype!r}")
    shape, strides = check_extent(ref, dtype.itemsize, len(room))
    if ref.size_bytes == 0:
        return torch.empty_strided(shape, strides, dtype=dtype, device=reader_device(ref.device_type, device))
    flat = torch.frombuffer(room, dtype=torch.uint8, count=ref.size_bytes, offset=ref.offset_bytes)
    placed = flat.to(reader_device(ref.device_type, device)).view(dtype)
    return placed.as_strided(shape, strides)


def encode_array(path: str, array: npt.NDArray[Any]) -> tuple[tensor_pb2.TensorRef, memoryview]:
    """The reference (without offset) and the bytes of a numpy array. A dense array keeps its axes' order in memory.

    Raises InvalidRequest with `path` unless its elements are plain numbers in this machine's byte order.
    """
    accepted = "a plain numpy array of " + ", ".join(sorted(_ARRAY_DTYPES))
    if type(array) is not np.ndarray or array.dtype.name not in _ARRAY_DTYPES or not array.dtype.isnative:
        raise InvalidRequest(path, f"{type(array).__name__} of {array.dtype}", accepted)
    if array.ndim > DIMENSIONS_MAX:
        raise InvalidRequest(path, array.shape, f"at most {DIMENSIONS_MAX} dimensions")
    strides = [stride // array.itemsize for stride in array.strides]
    dense = not any(stride % array.itemsize or stride < 0 for stride in array.strides)
    if not dense or span_elements(array.shape, strides) != array.size:
        array = array.copy(order="K")
        strides = [stride // array.itemsize for stride in array.strides]
    ref = tensor_pb2.TensorRef(name=path, dtype=array.dtype.name, shape=array.shape, strides=strides, device_type="cpu")
    if array.size == 0:
        return ref, memoryview(b"")
    flat = np.lib.stride_tricks.as_strided(array, (array.size,), (array.itemsize,))
    return ref, flat.view(np.uint8).data


def decode_array(ref: tensor_pb2.TensorRef, room: memoryview) -> npt.NDArray[Any]:
    """The array that `ref` names, in `room`'s memory. Raises SourceCorrupt as `decode_tensor` does."""
    if ref.dtype not in _ARRAY_DTYPES:
        raise SourceCorrupt(f"array {ref.name!r}: no dtype {ref.dtype!r}")
    dtype = np.dtype(ref.dtype)
    shape, strides = check_extent(ref, dtype.itemsize, len(room))
    part = room[ref.offset_bytes : ref.offset_bytes + ref.size_bytes]
    return np.ndarray(shape, dtype, part, strides=tuple(stride * dtype.itemsize for stride in strides))


def check_extent(
    ref: tensor_pb2.TensorRef, element_bytes: int, room_bytes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a reference. Raises SourceCorrupt unless they stay in its bytes, and those in the room."""
    shape = tuple(ref.shape)
    strides = tuple(ref.strides)
    if len(shape) != len(strides) or len(shape) > DIMENSIONS_MAX or any(n < 0 for n in shape + strides):
        raise SourceCorrupt(f"tensor {ref.name!r}: shape {shape} and strides {strides} don't describe one")
    if math.prod(max(1, extent) for extent in shape) > ELEMENT_COUNT_MAX:
        raise SourceCorrupt(f"tensor {ref.name!r}: shape {shape} has more than {ELEMENT_COUNT_MAX} elements")
    if span_elements(shape, strides) * element_bytes != ref.size_bytes:
        raise SourceCorrupt(f"tensor {ref.name!r}: {ref.size_bytes} bytes aren't its shape {shape}, strides {strides}")
    if ref.offset_bytes % element_bytes or ref.offset_bytes + ref.size_bytes > room_bytes:
        raise SourceCorrupt(f"tensor {ref.name!r}: at {ref.offset_bytes} it leaves the room of {room_bytes} bytes")
    return shape, strides


def torch_dtype(path: str, name: str) -> torch.dtype:
    """The dtype of this name in torch. Raises SourceCorrupt."""
    import torch

    dtype = vars(torch).get(name)  # not getattr: some names would import a part of torch
    if not isinstance(dtype, torch.dtype):
        raise SourceCorrupt(f"{path}: no dtype {name!r}")
    return dtype


def reader_device(device_type: str, device: str) -> str:
    """The reader's device for a value from a device of this type: its own of that type, else its CPU."""
    return device if device_type != "cpu" and device.split(":")[0] == device_type else "cpu"


def _without_gaps(flat: torch.Tensor, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """`flat`, the span of a tensor, with zeros between the elements: other values' memory must not cross."""
    core = sorted((stride, extent) for extent, stride in zip(shape, strides, strict=True) if extent > 1 and stride > 0)
    if math.prod(extent for _stride, extent in core) >= flat.numel():
        return flat
    reach = 1
    for stride, extent in core:
        if stride < reach:  # elements overlap (a sliding window), so the span is taken as it is
            return flat
        reach += (extent - 1) * stride
    core_strides, core_shape = zip(*core, strict=True)
    clean = flat.new_zeros(flat.shape)
    clean.as_strided(core_shape, core_strides).copy_(flat.as_strided(core_shape, core_strides))
    return clean
