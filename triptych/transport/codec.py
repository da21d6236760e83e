"""Python values that cross from one stage to the next, as a room's manifest and buffers, and back.

The set of types is closed (see `Value` in room.proto); any other type is an error that names the value's path. There is
no pickle, so reading a manifest runs none of its writer's code. `classes` says which foreign classes are rebuilt.

Ownership: the buffers that `encode` returns are the values' own memory where possible, so put them into an arena
before the values change. The values that `decode` returns lie in the memory of the fetched room, which it takes over:
give it memory that nobody else uses (as `Fetcher.fetch` returns), and they are writable and independent of the arena.
Aliasing is not kept: a tensor with two names may come back as two tensors.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.transport import classes, tensors
from triptych.v1 import room_pb2, tensor_pb2

DEPTH_MAX = 30
"""Deepest nesting of values. protobuf parses 100 messages deep, and a level takes at most three."""
INTEGER_DIGITS_MAX = 4300
"""Longest whole number in decimal: Python's own limit for reading one."""
_SCALARS = {bool: "boolean", float: "number", str: "text", bytes: "raw"}
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozen_set"}
_DEVICE_KINDS = ("cpu", "cuda", "xpu", "mps", "meta")
_IMAGE_BYTES = {
    mode: size
    for size, modes in ((1, "L"), (2, "LA I;16"), (3, "RGB YCbCr LAB HSV"), (4, "RGBA RGBX CMYK I F"))
    for mode in modes.split()
}
"""Bytes per pixel by PIL mode. A palette is more than pixels, and the rows of `1` are padded: neither crosses."""
_ACCEPTED = (
    "None, numbers, text, bytes, tensors, numpy arrays, lists, tuples, sets, dicts, slices, dtypes, devices, sizes, "
    "generators, PIL images, dataclasses of diffusers, enumerations and model outputs of "
    + " and ".join(classes.CLASS_PACKAGES)
)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A manifest and one buffer for each of its tensors. The arena fills in the offsets."""

    manifest: room_pb2.Manifest
    buffers: list[memoryview]


def encode(values: Mapping[str, object], job_id: str) -> Encoded:
    """Describe values by a manifest. Dense CPU tensors and arrays are not copied.

    Raises InvalidRequest with the path of a value that can't cross.
    """
    encoder = _Encoder(room_pb2.Manifest(job_id=job_id))
    for name, value in values.items():
        encoder.manifest.values[name].CopyFrom(encoder.encode(name, value, 0))
    return Encoded(encoder.manifest, encoder.buffers)


def decode(manifest: room_pb2.Manifest, room: memoryview, device: str = "cpu") -> dict[str, object]:
    """Rebuild the values from a room's manifest and all of its bytes, whose memory they take over.

    A tensor from a `cuda` device goes to `device` if that is one too, else to the CPU. A read-only `room` is copied
    first. Raises SourceCorrupt for a manifest that doesn't fit the room or isn't one that `encode` makes.
    """
    decoder = _Decoder(manifest.tensors, memoryview(bytearray(room)) if room.readonly else room, device)
    return {name: decoder.decode(name, manifest.values[name], 0) for name in sorted(manifest.values)}


class _Encoder:
    def __init__(self, manifest: room_pb2.Manifest) -> None:
        self.manifest = manifest
        self.buffers: list[memoryview] = []

    def encode(self, path: str, value: object, depth: int) -> room_pb2.Value:
        if depth > DEPTH_MAX:
            raise InvalidRequest(path, type(value).__name__, f"values nested at most {DEPTH_MAX} deep")
        try:
            result = self._encode_plain(path, value) or self._encode_nested(path, value, depth)
        except ValueError as error:  # protobuf refuses text that isn't Unicode
            if isinstance(error, InvalidRequest):
                raise
            raise InvalidRequest(path, type(value).__name__, f"a value that protobuf can hold ({error})") from error
        if result is None:
            raise InvalidRequest(path, type(value).__qualname__, _ACCEPTED)
        return result

    def _encode_plain(self, path: str, value: object) -> room_pb2.Value | None:
        """Values without parts. Builtin types are compared exactly: a subclass would come back as its base."""
        kind: type = type(value)
        if value is None:
            return room_pb2.Value(none=room_pb2.NoneValue())
        if kind in _SCALARS:
            return room_pb2.Value(**{_SCALARS[kind]: value})  # type: ignore[arg-type]
        if isinstance(value, int) and kind is int:
            if -(2**63) <= value < 2**63:
                return room_pb2.Value(integer=value)
            return room_pb2.Value(big_integer=str(value))
        if isinstance(value, complex) and kind is complex:
            return room_pb2.Value(complex=room_pb2.ComplexValue(real=value.real, imaginary=value.imag))
        if isinstance(value, np.ndarray):
            return room_pb2.Value(array=self._add(tensors.encode_array(path, value)))
        if isinstance(value, np.generic):
            return room_pb2.Value(array_scalar=self._add(tensors.encode_array(path, np.asarray(value))))
        if isinstance(value, slice):
            return _encode_slice(path, value)
        return self._encode_torch(path, value) or self._encode_image(path, value)

    def _encode_torch(self, path: str, value: object) -> room_pb2.Value | None:
        torch = sys.modules.get("torch")
        if torch is None:  # then no value can be of its types
            return None
        if isinstance(value, torch.Tensor):
            return room_pb2.Value(tensor=self._add(tensors.encode_tensor(path, value)))
        if isinstance(value, torch.Generator):
            state = self._add(tensors.encode_tensor(path, value.get_state()))
            return room_pb2.Value(generator=room_pb2.Generator(device=str(value.device), state=state))
        if isinstance(value, torch.dtype):
            return room_pb2.Value(dtype=str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return room_pb2.Value(device=str(value))
        if isinstance(value, torch.Size):
            return room_pb2.Value(size=room_pb2.Shape(dimensions=value))
        return None

    def _encode_image(self, path: str, value: object) -> room_pb2.Value | None:
        image_module = sys.modules.get("PIL.Image")
        if image_module is None or not isinstance(value, image_module.Image):
            return None
        if value.mode not in _IMAGE_BYTES:
            raise InvalidRequest(f"{path}.mode", value.mode, "one of " + ", ".join(sorted(_IMAGE_BYTES)))
        pixels = self._add(tensors.encode_array(path, np.frombuffer(value.tobytes(), np.uint8)))
        image = room_pb2.Image(mode=value.mode, width=value.width, height=value.height, pixels=pixels)
        return room_pb2.Value(image=image)

    def _encode_nested(self, path: str, value: object, depth: int) -> room_pb2.Value | None:
        if isinstance(value, list | tuple | set | frozenset) and type(value) in _SEQUENCES:
            items = [self.encode(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(value)]
            if isinstance(value, set | frozenset):  # so that equal sets give equal bytes under any hash seed
                items.sort(key=lambda item: item.SerializeToString(deterministic=True))
            return room_pb2.Value(**{_SEQUENCES[type(value)]: room_pb2.Sequence(items=items)})  # type: ignore[arg-type]
        if type(value) is dict:
            keys = [self.encode(f"{path} key {key!r:.40}", key, depth + 1) for key in value]
            items = [self.encode(f"{path}[{key!r:.40}]", item, depth + 1) for key, item in value.items()]
            return room_pb2.Value(mapping=room_pb2.Mapping(keys=keys, values=items))
        return self._encode_class(path, value, depth)

    def _encode_class(self, path: str, value: object, depth: int) -> room_pb2.Value | None:
        kind: Any = type(value)
        if not classes.is_named(kind):
            return None
        if isinstance(value, enum.Enum):
            member = room_pb2.EnumMember(module=kind.__module__, name=kind.__qualname__, member=value.name)
            return room_pb2.Value(enum_member=member)
        if not classes.is_rebuilt(kind):
            return None
        encoded = room_pb2.Dataclass(module=kind.__module__, name=kind.__qualname__)
        for field in dataclasses.fields(kind):
            place = f"{path}.{field.name}"
            if not field.init:
                raise InvalidRequest(place, "a computed field", "dataclasses of given fields only")
            encoded.fields[field.name].CopyFrom(self.encode(place, getattr(value, field.name), depth + 1))
        if isinstance(value, OrderedDict):
            return room_pb2.Value(model_output=encoded)
        return room_pb2.Value(dataclass=encoded)

    def _add(self, encoded: tuple[tensor_pb2.TensorRef, memoryview]) -> int:
        ref, buffer = encoded
        ref.size_bytes = buffer.nbytes
        self.manifest.tensors.append(ref)
        self.buffers.append(buffer)
        return len(self.buffers) - 1


class _Decoder:
    def __init__(self, refs: Iterable[tensor_pb2.TensorRef], room: memoryview, device: str) -> None:
        self._refs = list(refs)
        self._room = room.cast("B")
        self._device = device
        self._by_kind: dict[str, Callable[[str, Any, int], object]] = {
            **dict.fromkeys(("integer", *_SCALARS.values()), lambda path, part, depth: part),
            "none": lambda path, part, depth: None,
            "big_integer": _decode_big_integer,
            "complex": lambda path, part, depth: complex(part.real, part.imaginary),
            "tensor": lambda path, index, depth: tensors.decode_tensor(self._refs[index], self._room, device),
            "array": lambda path, index, depth: tensors.decode_array(self._refs[index], self._room),
            "array_scalar": lambda path, index, depth: tensors.decode_array(self._refs[index], self._room)[()],
            **{name: functools.partial(self._sequence, kind) for kind, name in _SEQUENCES.items()},
            "mapping": self._mapping,
            "dtype": lambda path, name, depth: tensors.torch_dtype(path, name),
            "device": self._device_value,
            "size": _decode_size,
            "slice": _decode_slice,
            "image": self._image,
            "generator": self._generator,
            "enum_member": lambda path, part, depth: classes.find(path, part, enum.Enum)[part.member],
            "dataclass": self._dataclass,
            "model_output": self._dataclass,
        }

    def decode(self, path: str, value: room_pb2.Value, depth: int) -> object:
        kind = value.WhichOneof("kind")
        if kind is None or depth > DEPTH_MAX:
            raise SourceCorrupt(f"{path}: a value of no known kind, or nested more than {DEPTH_MAX} deep")
        try:
            return self._by_kind[kind](path, getattr(value, kind), depth)
        # Whichever error a constructor raises, the bytes are wrong.
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
            raise SourceCorrupt(f"{path}: no such {kind} ({type(error).__name__}: {error})") from error

    def _sequence(self, kind: type, path: str, part: room_pb2.Sequence, depth: int) -> object:
        return kind([self.decode(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(part.items)])

    def _mapping(self, path: str, part: room_pb2.Mapping, depth: int) -> dict[Any, object]:
        if len(part.keys) != len(part.values):
            raise SourceCorrupt(f"{path}: {len(part.keys)} keys and {len(part.values)} values")
        keys = [self.decode(f"{path} key {index}", key, depth + 1) for index, key in enumerate(part.keys)]
        # The path has the key's place, not the key: it may be a tensor that can't be printed.
        values = [self.decode(f"{path} value {index}", item, depth + 1) for index, item in enumerate(part.values)]
        return dict(zip(keys, values, strict=True))

    def _device_value(self, path: str, text: str, depth: int) -> object:
        import torch

        kind = text.split(":")[0]
        if kind not in _DEVICE_KINDS:
            raise SourceCorrupt(f"{path}: no device {text!r}")
        return torch.device(text if kind in ("cpu", "meta") else tensors.reader_device(kind, self._device))

    def _image(self, path: str, part: room_pb2.Image, depth: int) -> object:
        from PIL import Image

        pixels = tensors.decode_array(self._refs[part.pixels], self._room)
        # Before PIL takes memory for them.
        if pixels.nbytes != part.width * part.height * _IMAGE_BYTES[part.mode]:
            raise SourceCorrupt(f"{path}: {pixels.nbytes} bytes aren't {part.width} × {part.height} of {part.mode}")
        return Image.frombytes(part.mode, (part.width, part.height), pixels.tobytes())

    def _generator(self, path: str, part: room_pb2.Generator, depth: int) -> object:
        import torch

        state = tensors.decode_tensor(self._refs[part.state], self._room, "cpu")
        kind = part.device.split(":")[0]
        device = tensors.reader_device(kind, self._device)
        if device == "cpu" and kind != "cpu":
            raise SourceCorrupt(f"{path}: a generator of {part.device!r} can't go on at {self._device!r}")
        return torch.Generator(device).set_state(state.clone())

    def _dataclass(self, path: str, part: room_pb2.Dataclass, depth: int) -> object:
        cls = classes.find(path, part, object)
        if not classes.is_rebuilt(cls):
            raise SourceCorrupt(f"{path}: {part.module}.{part.name} is no class that crosses")
        fields = {name: self.decode(f"{path}.{name}", part.fields[name], depth + 1) for name in sorted(part.fields)}
        try:
            return cls(**fields)
        except Exception as error:  # a foreign constructor may raise anything
            raise SourceCorrupt(f"{path}: {part.name} refuses its fields ({type(error).__name__})") from error


def _encode_slice(path: str, value: slice) -> room_pb2.Value:
    parts = {"start": value.start, "stop": value.stop, "step": value.step}
    for name, part in parts.items():
        if part is not None and type(part) is not int:
            raise InvalidRequest(f"{path}.{name}", part, "a whole number or None")
    return room_pb2.Value(slice=room_pb2.Slice(**parts))


def _decode_slice(path: str, part: room_pb2.Slice, depth: int) -> slice:
    return slice(*(getattr(part, name) if part.HasField(name) else None for name in ("start", "stop", "step")))


def _decode_big_integer(path: str, digits: str, depth: int) -> int:
    if len(digits) > INTEGER_DIGITS_MAX:
        raise SourceCorrupt(f"{path}: a number of {len(digits)} digits")
    return int(digits)


def _decode_size(path: str, part: room_pb2.Shape, depth: int) -> object:
    import torch

    return torch.Size(part.dimensions)
