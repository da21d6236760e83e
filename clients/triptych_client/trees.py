"""Python values as a request's inputs: pictures, arrays, tensors, paths and plain values, at any depth.

| Python | becomes |
| --- | --- |
| None, bool, int, float, str | itself |
| list, tuple | a list |
| mapping, dataclass, named tuple | an object |
| bytes, `Path` | a file: a picture, a video, sound; a tensor where the path ends in `.safetensors` |
| picture of Pillow | a PNG, which keeps its pixels |
| array of numpy, tensor of torch | a tensor |
| `Media`, `TensorFile` | itself, for example with the id of an upload |
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE

from triptych.errors import InvalidRequest
from triptych.media import tensor_files
from triptych.model.trees import INPUTS_DEPTH_MAX
from triptych.v1.job_pb2 import InputValue, Media, TensorFile

TENSOR_SUFFIX = ".safetensors"
TENSOR_NAME = "tensor"
"""Of the one tensor in the files that are made here."""
_ACCEPTED = "None, bool, int, float, str, bytes, a path, a picture, an array, a tensor, or a list or mapping of these"


def tree(value: Any, place: str, depth: int = 1) -> InputValue:
    """The value as a message. Raises InvalidRequest, with the place within it, for what can't be sent or read."""
    if depth > INPUTS_DEPTH_MAX:
        raise InvalidRequest(place, f"nested {depth} deep or more", f"at most {INPUTS_DEPTH_MAX}")
    found = InputValue()
    if value is None:
        found.null_value = NULL_VALUE
    elif isinstance(value, bool | int | float | str):
        _set_plain(found, value, place)
    elif isinstance(value, bytes | Path | Media) or _is_picture(value):
        found.media.CopyFrom(_media(value, place))
        if isinstance(value, Path) and value.suffix == TENSOR_SUFFIX:
            found.tensor.data = found.media.data
    elif isinstance(value, TensorFile):
        found.tensor.CopyFrom(value)
    elif (fields := _fields(value)) is not None:
        found.map_value.SetInParent()
        for name, one in fields.items():
            if not isinstance(name, str):
                raise InvalidRequest(f"{place} key", name, "text")
            found.map_value.fields[name].CopyFrom(tree(one, f"{place}.{name}", depth + 1))
    elif isinstance(value, list | tuple):
        items = [tree(one, f"{place}[{number}]", depth + 1) for number, one in enumerate(value)]
        found.list_value.SetInParent()
        found.list_value.items.extend(items)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        found.tensor.data = _tensor(value, place)
    else:
        raise InvalidRequest(place, type(value).__name__, _ACCEPTED)
    return found


def _set_plain(found: InputValue, value: Any, place: str) -> None:
    kinds = {bool: "bool_value", int: "int_value", float: "number_value", str: "string_value"}
    name = next(kind for type_, kind in kinds.items() if isinstance(value, type_))
    try:
        setattr(found, name, value)
    except (TypeError, ValueError) as error:  # out of range, or text with lone surrogates
        raise InvalidRequest(place, value, "a number of 64 bits, or text in Unicode") from error


def _is_picture(value: Any) -> bool:
    module = sys.modules.get("PIL.Image")  # where it isn't imported, no value is one of its pictures
    return module is not None and isinstance(value, module.Image)


def _media(value: Any, place: str) -> Media:
    if isinstance(value, Media):
        return value
    if isinstance(value, bytes):
        return Media(data=value)
    if isinstance(value, Path):
        return Media(data=read_file(value, place))
    file = io.BytesIO()
    value.save(file, "PNG")
    return Media(data=file.getvalue())


def read_file(path: Path, place: str) -> bytes:
    """A file's bytes. Raises InvalidRequest for one that can't be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequest(place, str(path), f"a readable file ({error})") from error


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    named: Mapping[str, Any] | None = value._asdict() if hasattr(value, "_asdict") else None
    return named


def _tensor(value: Any, place: str) -> bytes:
    try:
        return tensor_files.write({TENSOR_NAME: tensor_files.tensor_of(value)})
    except ValueError as error:
        raise InvalidRequest(place, str(error), f"a tensor of {', '.join(tensor_files.ITEM_BITS)}") from error
