"""The flag `--input NAME=VALUE`, given as often as needed, as Python values by input.

What stands before the first `[` is an input's name, also `scheduler.flow_shift`. Behind it `[0]` leads into a list,
`[edge]` or `.edge` into an object: `conditions[0].frames`, `control_videos[edge]`. A value is JSON, `@FILE` for a
picture, a video, sound or a tensor, or `@FILE.safetensors#NAME` for one of several tensors in a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import TensorFile
from triptych_client.trees import TENSOR_SUFFIX, read_file

SHAPE = "NAME=JSON or NAME=@FILE; NAME[0], NAME[0].FIELD or NAME[KEY] lead into lists and objects"
_PATH = re.compile(r"([^\[\]=]+)((?:\[[^\[\]]+\](?:\.[^.\[\]]+)*)*)")
_PART = re.compile(r"\[([^\[\]]+)\]|\.([^.\[\]]+)")

Node = dict[str | int, Any]
"""Parts of a value by key, or by index: a list in the making."""


def values_of(flags: Iterable[str]) -> dict[str, Any]:
    """The inputs that flags give. Raises InvalidRequest for one that can't be read, or that is given twice."""
    found: Node = {}
    for text in flags:
        path, equals, value = text.partition("=")
        parts = _parts(path)
        if not equals or parts is None:
            raise InvalidRequest("input", text, SHAPE)
        node = found
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise InvalidRequest("input", path, "a place that no other flag gives a value")
        if parts[-1] in node:
            raise InvalidRequest("input", path, "a place that no other flag gives a value")
        node[parts[-1]] = _Value(_value(path, value))
    return {str(name): _finished(str(name), node) for name, node in found.items()}


class _Value:
    """A value that was given; what is none is a `Node`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _parts(path: str) -> list[str | int] | None:
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    inner = [one[1] or one[2] for one in _PART.finditer(match[2])]
    return [match[1], *(int(one) if one.isdecimal() else one for one in inner)]


def _value(path: str, text: str) -> Any:
    if text.startswith("@"):
        file, hash_, tensor = text[1:].partition("#")
        if hash_ and file.endswith(TENSOR_SUFFIX):
            return TensorFile(data=read_file(Path(file), f"input {path}"), tensor=tensor)
        return Path(text[1:])
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        accepted = "JSON, for example 3, [1, 2] or '\"text\"', or @FILE"
        raise InvalidRequest(f"input {path}", text, accepted) from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finished(place: str, node: Any) -> Any:
    if isinstance(node, _Value):
        return node.value
    if all(isinstance(key, int) for key in node):
        if sorted(node) != list(range(len(node))):
            raise InvalidRequest(
                "input", f"{place}[{max(node)}]", f"indices from 0 on, without gaps: {len(node)} are given"
            )
        return [_finished(f"{place}[{key}]", node[key]) for key in range(len(node))]
    return {str(key): _finished(f"{place}.{key}", one) for key, one in node.items()}
