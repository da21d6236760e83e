"""What crosses from a stage to the next: Python values to a room's manifest and buffers, and back.

A closed set of types (see `Value` in room.proto); anything else is an error that names the value's path. No pickle:
nothing that is read can run code. Classes of diffusers and transformers are rebuilt by name, from those packages
only and only where they are enumerations, model outputs, or plain dataclasses of diffusers.

Ownership: the buffers that `encode` returns are the values' own memory where possible, so put them into an arena
before the values change. What `decode` returns lies in the memory of the fetched room, which it takes over: give it
memory that nobody else uses (as `Fetcher.fetch` returns) and the values are writable and independent of the arena.
Two names of one tensor come back as two tensors or one: aliasing is not kept.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from triptych import tensors
from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.v1 import room_pb2, tensor_pb2

DEPTH_MAX = 30
"""Deepest nesting of values; protobuf parses 100 messages deep and a level takes at most three."""
INTEGER_DIGITS_MAX = 4300
"""Longest whole number in decimal: Python's own limit for reading one."""
CLASS_PACKAGES = ("diffusers", "transformers")
"""Packages whose enumerations and model outputs cross, and the dataclasses of the first."""
_DEVICE_KINDS = ("cpu", "cuda", "xpu", "mps", "meta")
_IMAGE_BYTES = {
    mode: size
    for size, modes in ((1, "L"), (2, "LA I;16"), (3, "RGB YCbCr LAB HSV"), (4, "RGBA RGBX CMYK I F"))
    for mode in modes.split()
}
"""Bytes a pixel, by PIL mode. Not among them: palettes, which are more than pixels, and `1`, whose rows are padded."""
_ACCEPTED = (
    "None, numbers, text, bytes, tensors, numpy arrays, lists, tuples, sets, dicts, slices, dtypes, devices, sizes, "
    "generators, PIL images, dataclasses of diffusers, enumerations and model outputs of "
    + " and ".join(CLASS_PACKAGES)
)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A manifest and the bytes of its tensors, one buffer for each; the arena fills in the offsets."""

    manifest: room_pb2.Manifest
    buffers: list[memoryview]


def encode(values: Mapping[str, object], job_id: str) -> Encoded:
    """Describe values by a manifest. Dense CPU tensors and arrays are not copied.

    Raises InvalidRequest naming the path of a value that can't cross.
    """
    encoder = _Encoder(room_pb2.Manifest(job_id=job_id))
    for name, value in values.items():
        encoder.manifest.values[name].CopyFrom(encoder.encode(name, value, 0))
    return Encoded(encoder.manifest, encoder.buffers)


def decode(manifest: room_pb2.Manifest, room: memoryview, device: str = "cpu") -> dict[str, object]:
    """Rebuild the values from a room's manifest and all of its bytes, whose memory they take over.

    A tensor that was on a `cuda` device goes to `device` where that is one, else to the CPU. A read-only `room` is
    copied first. Raises SourceCorrupt for a manifest that doesn't fit the room or isn't one that `encode` makes.
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
        """Values without parts. Types are compared exactly: a subclass would come back as its base."""
        kind = type(value)
        if value is None:
            return room_pb2.Value(none=room_pb2.NoneValue())
        if kind is bool:
            return room_pb2.Value(boolean=value)  # type: ignore[arg-type]
        if isinstance(value, int) and kind is int:
            if -(2**63) <= value < 2**63:
                return room_pb2.Value(integer=value)
            return room_pb2.Value(big_integer=str(value))
        if kind is float:
            return room_pb2.Value(number=value)  # type: ignore[arg-type]
        if isinstance(value, complex) and kind is complex:
            return room_pb2.Value(complex=room_pb2.ComplexValue(real=value.real, imaginary=value.imag))
        if kind is str:
            return room_pb2.Value(text=value)  # type: ignore[arg-type]
        if kind is bytes:
            return room_pb2.Value(raw=value)  # type: ignore[arg-type]
        if isinstance(value, np.ndarray):
            return room_pb2.Value(array=self._add(tensors.encode_array(path, value)))
        if isinstance(value, np.generic):
            return room_pb2.Value(array_scalar=self._add(tensors.encode_array(path, np.asarray(value))))
        if isinstance(value, slice):
            return _encode_slice(path, value)
        return self._encode_torch(path, value) or self._encode_image(path, value)

    def _encode_torch(self, path: str, value: object) -> room_pb2.Value | None:
        torch = sys.modules.get("torch")
        if torch is None:  # then it can't be one of its values
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
        pixels = np.frombuffer(value.tobytes(), np.uint8)
        index = self._add(tensors.encode_array(path, pixels))
        return room_pb2.Value(
            image=room_pb2.Image(mode=value.mode, width=value.width, height=value.height, pixels=index)
        )

    def _encode_nested(self, path: str, value: object, depth: int) -> room_pb2.Value | None:
        if type(value) is list:
            return room_pb2.Value(list=self._sequence(path, value, depth))
        if type(value) is tuple:
            return room_pb2.Value(tuple=self._sequence(path, value, depth))
        if type(value) is set:
            return room_pb2.Value(set=self._sequence(path, value, depth, ordered=False))
        if type(value) is frozenset:
            return room_pb2.Value(frozen_set=self._sequence(path, value, depth, ordered=False))
        if type(value) is dict:
            keys = [self.encode(f"{path} key {key!r:.40}", key, depth + 1) for key in value]
            items = [self.encode(f"{path}[{key!r:.40}]", item, depth + 1) for key, item in value.items()]
            return room_pb2.Value(mapping=room_pb2.Mapping(keys=keys, values=items))
        return self._encode_class(path, value, depth)

    def _encode_class(self, path: str, value: object, depth: int) -> room_pb2.Value | None:
        kind: Any = type(value)
        if kind.__module__.split(".")[0] not in CLASS_PACKAGES or "<locals>" in kind.__qualname__:
            return None
        if isinstance(value, enum.Enum):
            member = room_pb2.EnumMember(module=kind.__module__, name=kind.__qualname__, member=value.name)
            return room_pb2.Value(enum_member=member)
        if not _crosses(kind):
            return None
        encoded = room_pb2.Dataclass(module=kind.__module__, name=kind.__qualname__)
        for field in dataclasses.fields(kind):
            if not field.init:
                raise InvalidRequest(f"{path}.{field.name}", "a computed field", "dataclasses of given fields only")
            part = self.encode(f"{path}.{field.name}", getattr(value, field.name), depth + 1)
            encoded.fields[field.name].CopyFrom(part)
        if isinstance(value, OrderedDict):
            return room_pb2.Value(model_output=encoded)
        return room_pb2.Value(dataclass=encoded)

    def _sequence(self, path: str, items: Iterable[object], depth: int, ordered: bool = True) -> room_pb2.Sequence:
        encoded = [self.encode(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(items)]
        if not ordered:  # equal sets give equal bytes, whatever the hash seed of the process
            encoded.sort(key=lambda item: item.SerializeToString(deterministic=True))
        return room_pb2.Sequence(items=encoded)

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
            "none": lambda path, part, depth: None,
            "boolean": _same,
            "integer": _same,
            "number": _same,
            "text": _same,
            "raw": _same,
            "big_integer": _decode_big_integer,
            "complex": lambda path, part, depth: complex(part.real, part.imaginary),
            "tensor": lambda path, index, depth: tensors.decode_tensor(self._ref(path, index), self._room, device),
            "array": lambda path, index, depth: tensors.decode_array(self._ref(path, index), self._room),
            "array_scalar": lambda path, index, depth: tensors.decode_array(self._ref(path, index), self._room)[()],
            "list": lambda path, part, depth: self._items(path, part, depth),
            "tuple": lambda path, part, depth: tuple(self._items(path, part, depth)),
            "set": lambda path, part, depth: set(self._items(path, part, depth)),
            "frozen_set": lambda path, part, depth: frozenset(self._items(path, part, depth)),
            "mapping": self._mapping,
            "dtype": _decode_dtype,
            "device": self._device_value,
            "size": _decode_size,
            "slice": _decode_slice,
            "image": self._image,
            "generator": self._generator,
            "enum_member": lambda path, part, depth: _find_class(path, part, enum.Enum)[part.member],
            "dataclass": self._dataclass,
            "model_output": self._dataclass,
        }

    def decode(self, path: str, value: room_pb2.Value, depth: int) -> object:
        kind = value.WhichOneof("kind")
        if kind is None or depth > DEPTH_MAX:
            raise SourceCorrupt(f"{path}: a value of no known kind, or nested more than {DEPTH_MAX} deep")
        try:
            return self._by_kind[kind](path, getattr(value, kind), depth)
        # Whatever these bytes make a constructor say, it is the bytes that are wrong.
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
            raise SourceCorrupt(f"{path}: no such {kind} ({type(error).__name__}: {error})") from error

    def _ref(self, path: str, index: int) -> tensor_pb2.TensorRef:
        if index >= len(self._refs):
            raise SourceCorrupt(f"{path}: tensor {index} of {len(self._refs)}")
        return self._refs[index]

    def _items(self, path: str, part: room_pb2.Sequence, depth: int) -> list[object]:
        return [self.decode(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(part.items)]

    def _mapping(self, path: str, part: room_pb2.Mapping, depth: int) -> dict[Any, object]:
        if len(part.keys) != len(part.values):
            raise SourceCorrupt(f"{path}: {len(part.keys)} keys and {len(part.values)} values")
        keys = [self.decode(f"{path} key {index}", key, depth + 1) for index, key in enumerate(part.keys)]
        # Values are named by their place: a key may be a tensor, and not every tensor can be shown.
        values = [self.decode(f"{path} value {index}", item, depth + 1) for index, item in enumerate(part.values)]
        return dict(zip(keys, values, strict=True))

    def _device_value(self, path: str, text: str, depth: int) -> object:
        import torch

        kind = text.split(":")[0]
        if kind not in _DEVICE_KINDS:
            raise SourceCorrupt(f"{path}: no device {text!r}")
        try:
            return torch.device(text if kind in ("cpu", "meta") else tensors.reader_device(kind, self._device))
        except RuntimeError as error:
            raise SourceCorrupt(f"{path}: no device {text!r}") from error

    def _image(self, path: str, part: room_pb2.Image, depth: int) -> object:
        from PIL import Image

        pixels = tensors.decode_array(self._ref(path, part.pixels), self._room)
        # Checked before PIL takes memory for them.
        if pixels.nbytes != part.width * part.height * _IMAGE_BYTES[part.mode]:
            raise SourceCorrupt(f"{path}: {pixels.nbytes} bytes aren't {part.width} × {part.height} of {part.mode}")
        return Image.frombytes(part.mode, (part.width, part.height), pixels.tobytes())

    def _generator(self, path: str, part: room_pb2.Generator, depth: int) -> object:
        import torch

        state = tensors.decode_tensor(self._ref(path, part.state), self._room, "cpu")
        kind = part.device.split(":")[0]
        if tensors.reader_device(kind, self._device) == "cpu" and kind != "cpu":
            raise SourceCorrupt(f"{path}: a generator of {part.device!r} can't go on at {self._device!r}")
        generator = torch.Generator(tensors.reader_device(kind, self._device))
        try:
            return generator.set_state(state.clone())
        except RuntimeError as error:
            raise SourceCorrupt(f"{path}: no state of a generator ({error})") from error

    def _dataclass(self, path: str, part: room_pb2.Dataclass, depth: int) -> object:
        cls = _find_class(path, part, object)
        if not _crosses(cls):
            raise SourceCorrupt(f"{path}: {part.module}.{part.name} is no class that crosses")
        fields = {name: self.decode(f"{path}.{name}", part.fields[name], depth + 1) for name in sorted(part.fields)}
        try:
            return cls(**fields)
        except Exception as error:  # what a foreign constructor raises can't be known
            raise SourceCorrupt(f"{path}: {part.name} refuses its fields ({type(error).__name__})") from error


def _crosses(cls: Any) -> bool:
    """Whether a class is a model output, or a dataclass of diffusers: those of transformers may act when made."""
    allowed = issubclass(cls, OrderedDict) or cls.__module__.split(".")[0] == "diffusers"
    return allowed and dataclasses.is_dataclass(cls)


def _same(path: str, part: object, depth: int) -> object:
    return part


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


def _decode_dtype(path: str, name: str, depth: int) -> object:
    import torch

    dtype = vars(torch).get(name)  # not getattr: some names would import a part of torch
    if not isinstance(dtype, torch.dtype):
        raise SourceCorrupt(f"{path}: no dtype {name!r}")
    return dtype


def _decode_size(path: str, part: room_pb2.Shape, depth: int) -> object:
    import torch

    return torch.Size(part.dimensions)


def _find_class(path: str, part: room_pb2.Dataclass | room_pb2.EnumMember, base: type) -> Any:
    """The named class of an allowed package. Only attributes that are classes are followed."""
    if part.module.split(".")[0] not in CLASS_PACKAGES:
        raise SourceCorrupt(f"{path}: {part.module!r} is outside {' and '.join(CLASS_PACKAGES)}")
    try:
        found: Any = importlib.import_module(part.module)
        for name in part.name.split("."):
            found = getattr(found, name, None)
    except Exception as error:  # what a foreign module raises when it's imported can't be known
        raise SourceCorrupt(f"{path}: {part.module!r} can't be imported ({type(error).__name__})") from error
    if not (isinstance(found, type) and issubclass(found, base) and found.__module__ == part.module):
        raise SourceCorrupt(f"{path}: no class {part.module}.{part.name} that can cross")
    return found
