"""A request's inputs as trees of values: their bounds, the files at their leaves, and what is given by which field.

`inputs` says everything; the request's own fields, `parameters` and `media` are shorthands for some of it. `gather`
merges them. Leaves that are files stay messages, `Media` or `TensorFile`, until `accepting` looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf import struct_pb2

from triptych.errors import InvalidRequest
from triptych.model import costs, fields
from triptych.model.description import Given
from triptych.v1.job_pb2 import GenerationRequest, InputValue, Media, TensorFile

INPUTS_DEPTH_MAX = costs.PARAMETERS_DEPTH_MAX
INPUTS_VALUES_MAX = costs.PARAMETERS_VALUES_MAX
"""Both as for `parameters`, of which `inputs` is the longer form."""
INPUTS_FILES_MAX = 64
"""Most files in one request: pictures, videos, sounds and tensors. Each may cost a look at the store of uploads."""
NAME_BYTES_MAX = 256
"""Longest name of an input, or key of an object: the longest in diffusers has 40 letters."""

INPUTS_PATH_CHARS_MAX = 256
"""Longest path of a file: files are told to the processes that decode in one line (`media/decoding/bounds.py`)."""

FileLeaf = Media | TensorFile


def check_size(request: GenerationRequest) -> None:
    """Raise InvalidRequest for trees that are too deep, of too many values or files, or with too long texts.

    A value's children are counted before they are visited, so no more of them wait than the bound allows.
    """
    files = len(request.media)
    count = _counted(0, len(request.inputs))
    waiting = [(f"inputs.{_checked_name(name)}", value, 1) for name, value in request.inputs.items()]
    while waiting and files <= INPUTS_FILES_MAX:
        place, value, depth = waiting.pop()
        if depth > INPUTS_DEPTH_MAX:
            raise InvalidRequest(place, f"nested {depth} deep or more", f"at most {INPUTS_DEPTH_MAX}")
        kind = value.WhichOneof("kind")
        if kind in ("media", "tensor"):
            files += 1
            _check_place(place)
        if kind == "string_value":
            costs.check_text_bytes(place, value.string_value)
        elif kind == "list_value":
            count = _counted(count, len(value.list_value.items))
            waiting.extend((f"{place}[{n}]", item, depth + 1) for n, item in enumerate(value.list_value.items))
        elif kind == "map_value":
            count = _counted(count, len(value.map_value.fields))
            fields_ = value.map_value.fields.items()
            waiting.extend((f"{place}.{_checked_name(name)}", item, depth + 1) for name, item in fields_)
    if files > INPUTS_FILES_MAX:
        accepted = f"at most {INPUTS_FILES_MAX}, those in inputs among them"
        raise InvalidRequest("media", f"{files} files or more", accepted)


def file_leaves(request: GenerationRequest) -> Iterator[tuple[str, FileLeaf]]:
    """Yield every file of a request of checked size, with the field that holds it: `inputs.conditions[0].image`."""
    for media in request.media:
        yield f"media.{media.name}", media
    for name in sorted(request.inputs):
        yield from _leaves(f"inputs.{name}", request.inputs[name])


def gather(request: GenerationRequest) -> Given:
    """What a request of checked size gives. Raises InvalidRequest for an input that is given twice, and what is none.

    A Struct's numbers are doubles: they stay so here. Several `media` of one name are a list; one is itself.
    """
    given = Given({}, {})
    for name, value in fields.values_of(request).items():
        _add(given, name, value, name)
    for name, struct_value in request.parameters.fields.items():
        value = struct_plain(struct_value)
        if name in fields.INPUT_FIELDS:
            accepted = f"nothing here; set the request's own field {name}"
            raise InvalidRequest(f"parameters.{name}", value, accepted)
        _add(given, name, value, f"parameters.{name}")
    files: dict[str, list[Media]] = {}
    for media in request.media:
        files.setdefault(media.name, []).append(media)
    for name, several in files.items():
        _add(given, name, several if len(several) > 1 else several[0], f"media.{name}")
    for name in sorted(request.inputs):
        _add(given, name, plain(f"inputs.{name}", request.inputs[name]), f"inputs.{name}")
    return given


def plain(place: str, value: InputValue) -> Any:
    """A tree of checked size in Python. Raises InvalidRequest for a number that isn't finite and a value of no kind."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [plain(f"{place}[{number}]", item) for number, item in enumerate(value.list_value.items)]
    if kind == "map_value":
        return {name: plain(f"{place}.{name}", item) for name, item in value.map_value.fields.items()}
    if kind is None:
        raise InvalidRequest(place, None, "a value of some kind; nullValue for none")
    found = None if kind == "null_value" else getattr(value, kind)
    if isinstance(found, float) and not math.isfinite(found):
        raise InvalidRequest(place, found, "finite numbers")
    return found


def struct_plain(value: struct_pb2.Value) -> Any:
    """A Struct's value in Python. Keeps NaN, unlike protobuf's own conversion, so that it can be refused by name."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: struct_plain(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [struct_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _leaves(place: str, value: InputValue) -> Iterator[tuple[str, FileLeaf]]:
    kind = value.WhichOneof("kind")
    if kind in ("media", "tensor"):
        yield place, getattr(value, kind)
    elif kind == "list_value":
        for number, item in enumerate(value.list_value.items):
            yield from _leaves(f"{place}[{number}]", item)
    elif kind == "map_value":
        for name in sorted(value.map_value.fields):
            yield from _leaves(f"{place}.{name}", value.map_value.fields[name])


def _add(given: Given, name: str, value: Any, place: str) -> None:
    if name in given.values:
        raise InvalidRequest(place, "a second value", f"nothing; {given.places[name]} gives this input already")
    given.values[name] = value
    given.places[name] = place


def _checked_name(name: str) -> str:
    if len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest("inputs", f"a name of {len(name)} characters", f"at most {NAME_BYTES_MAX} bytes")
    return name


def _check_place(place: str) -> None:
    if len(place) > INPUTS_PATH_CHARS_MAX:
        raise InvalidRequest(
            "inputs", f"a file {len(place)} characters deep", f"a path of at most {INPUTS_PATH_CHARS_MAX}"
        )


def _counted(count: int, more: int) -> int:
    if count + more > INPUTS_VALUES_MAX:
        raise InvalidRequest(
            "inputs", f"{count + more} values or more", f"at most {INPUTS_VALUES_MAX}, at all depths together"
        )
    return count + more
