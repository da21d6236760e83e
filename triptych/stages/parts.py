"""Parts of a model's output, by path: which of them cross, and outputs that know which of theirs were read.

A path names a tensor by fields and places: `last_hidden_state`, `hidden_states.28`, `text_model_output.pooler_output`.
Blocks read few of them: of 29 hidden states one, and no logits. So an output that came from elsewhere notes what is
read, and a later call asks for that alone. Whatever wasn't sent and is read after all is fetched then.

Nothing here guesses. A part stands in its tuple or output as a `_Part`; reads by attribute, key, place and iteration
give the tensor itself, and torch's own functions, which look into tuples without asking them, come by
`__torch_function__`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from typing import Any, SupportsIndex

import torch

from triptych.stages.library import ModelOutput


def each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with all changed that is no container, at any depth of lists, tuples, dicts and model outputs."""
    if type(value) in (list, tuple):
        return type(value)(each_leaf(item, change) for item in value)
    if type(value) is dict:
        return {key: each_leaf(item, change) for key, item in value.items()}
    if isinstance(value, ModelOutput):
        return type(value)(**{key: each_leaf(item, change) for key, item in value.items()})
    return change(value)


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with each of its tensors changed, as deep as `each_leaf` goes."""
    return each_leaf(value, lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def chosen(output: Any, wanted: Collection[str]) -> Any:
    """The model output with empty tensors for those that no path of `wanted` names; unchanged where it names none."""
    return _mapped(output, "", lambda path, part: part if path in wanted else part.new_empty(0)) if wanted else output


def noting(output: Any, sent: Collection[str] | None, note: Callable[[str], None], whole: Callable[[], Any]) -> Any:
    """A model output that calls `note` with the path of each part that is read.

    `sent` are the paths of which the output has the tensors; None means all. Others come from `whole()`, the output
    with all of them. What isn't a model output is returned as it is.
    """

    def part_of(path: str, tensor: torch.Tensor) -> _Part:
        is_sent = sent is None or path in sent
        return _Part(path, tensor if is_sent else None, note, whole)

    return _mapped(output, "", part_of, noted=True) if isinstance(output, ModelOutput) else output


def plain(value: Any) -> Any:
    """The value as a model itself returns it: whatever notes its reads counts as read. At any depth."""
    if type(value) is _Part:
        return value.read()
    if isinstance(value, _Output):
        return type(value).__bases__[1](**{key: plain(item) for key, item in value.items()})
    if isinstance(value, _Parts) or type(value) is tuple:
        return tuple(plain(item) for item in value)
    if type(value) is list:
        return [plain(item) for item in value]
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value


def _mapped(value: Any, path: str, change: Callable[[str, torch.Tensor], Any], *, noted: bool = False) -> Any:
    """An output with each tensor changed; `noted` makes its outputs and tuples those that note reads."""
    if isinstance(value, torch.Tensor):
        return change(path, value)
    if isinstance(value, ModelOutput):
        place = f"{path}." if path else ""
        parts = {key: _mapped(item, place + key, change, noted=noted) for key, item in value.items()}
        return _Output.like(value, parts) if noted else type(value)(**parts)
    if type(value) is tuple:
        items = (_mapped(item, f"{path}.{index}", change, noted=noted) for index, item in enumerate(value))
        return _Parts(items) if noted else tuple(items)
    return value


def _at(output: Any, path: str) -> Any:
    for step in path.split("."):
        output = output[int(step)] if isinstance(output, tuple) else output[step]
    return output


class _Part:
    """One tensor of an output, until it is read."""

    def __init__(
        self, path: str, tensor: torch.Tensor | None, note: Callable[[str], None], whole: Callable[[], Any]
    ) -> None:
        self._path = path
        self._tensor = tensor
        self._note = note
        self._whole = whole

    def read(self) -> torch.Tensor:
        """The tensor."""
        self._note(self._path)
        if self._tensor is None:
            self._tensor = _at(self._whole(), self._path)
        return self._tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*plain(tuple(args)), **plain(dict(kwargs or {})))


def _read(value: Any) -> Any:
    return value.read() if type(value) is _Part else value


class _Parts(tuple[Any, ...]):
    """A tuple of an output."""

    __slots__ = ()

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        found = super().__getitem__(place)
        return tuple(map(_read, found)) if isinstance(place, slice) else _read(found)

    def __iter__(self) -> Iterator[Any]:
        return map(_read, super().__iter__())

    def __add__(self, other: Any) -> Any:
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + tuple(self)


class _Output(ModelOutput):  # type: ignore[misc]
    """What an output's class is given first of all, so that reads of its fields come here."""

    @staticmethod
    def like(output: ModelOutput, parts: dict[str, Any]) -> Any:
        """An output of the same fields, of a class made of its own."""
        cls: Any = type(output)
        kind = _noting_class(cls)
        made = kind.__new__(kind)
        made.__dict__.update({field.name: None for field in fields(output)})
        for key, part in parts.items():
            made[key] = part
        return made

    def __getattribute__(self, name: str) -> Any:
        return _read(super().__getattribute__(name))

    def __getitem__(self, key: Any) -> Any:
        names = list(self)
        if isinstance(key, slice):
            return tuple(self[name] for name in names[key])
        if isinstance(key, str) and key not in self:
            raise KeyError(key)
        return getattr(self, key if isinstance(key, str) else names[key])

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self else default

    def values(self) -> list[Any]:
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self]


@functools.cache
def _noting_class(kind: Any) -> Any:
    return type(kind.__name__, (_Output, kind), {"__module__": __name__})
