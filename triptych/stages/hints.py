"""What a type hint of diffusers lets a request give: kinds of values, one or a list of them, and an object's fields.

Hints say little (`list`, or nothing at all), so the glossary of names that diffusers keeps, an input's default, the
classes that its description names, and at last its name decide where the hint doesn't.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from triptych.stages.library import ModularPipelineBlocks
from triptych.v1 import model_pb2
from triptych.v1.model_pb2 import InputDescription

Kind: typing.TypeAlias = "model_pb2.InputKind.ValueType"

PLAIN_KINDS: dict[object, Kind] = {
    str: model_pb2.INPUT_KIND_TEXT,
    bool: model_pb2.INPUT_KIND_BOOLEAN,
    int: model_pb2.INPUT_KIND_INTEGER,
    float: model_pb2.INPUT_KIND_NUMBER,
    list: model_pb2.INPUT_KIND_LIST,
    tuple: model_pb2.INPUT_KIND_LIST,
    dict: model_pb2.INPUT_KIND_MAPPING,
}
SEQUENCES = (list, tuple)
_NUMBERS = {model_pb2.INPUT_KIND_INTEGER, model_pb2.INPUT_KIND_NUMBER}
_SOUND = re.compile(r"(^|_)(audios?|sounds?|waveforms?)$")
"""Names of sounds; `audio_latents` is none."""
_PICTURES = re.compile(r"(^|_)images?$")
_VIDEOS = re.compile(r"(^|_)(videos?|frames)$")
_CLASS_NAME = re.compile(r"`(\w+)`")


class Meaning(NamedTuple):
    """What a hint lets be given."""

    kind: Kind
    items: tuple[Kind, ...] = ()
    """Kinds of the value, or of each item of a list or mapping, the likeliest first."""
    arity: model_pb2.InputArity.ValueType = model_pb2.INPUT_ARITY_ONE
    classes: tuple[type, ...] = ()
    """The classes of objects."""


def meaning(name: str, hint: Any, named: tuple[type, ...] = ()) -> Meaning:
    """What an input of this name and hint takes; `named` are classes that its description names."""
    options = options_of(hint)
    containers = [option for option in options if plain_type(option) in SEQUENCES]
    singles = [option for option in options if option not in containers]
    inner = [item for option in containers for item in items_of(option)]
    classes = tuple(one for option in (*singles, *inner) if is_object(option) for one in concrete(option)) or named
    kinds = list(dict.fromkeys(_kinds(name, singles)))
    inner_kinds = list(dict.fromkeys(_kinds(name, inner)))
    if not inner and containers and (guessed := _by_name(name, named)) is not None:
        inner_kinds = [guessed]  # a list without more
    if _is_video(name, singles, containers, inner):
        return _video(name, kinds, classes)
    if not options:
        guessed = _by_name(name, named)
        return Meaning(guessed or model_pb2.INPUT_KIND_UNSPECIFIED, (guessed,) if guessed else (), classes=classes)
    if plain_type(next(iter(options))) is dict and _VIDEOS.search(name):
        return Meaning(model_pb2.INPUT_KIND_MAPPING, (model_pb2.INPUT_KIND_VIDEO,))
    return _of_kinds(kinds, inner_kinds, classes, has_list=bool(containers))


def _of_kinds(kinds: list[Kind], inner: list[Kind], classes: tuple[type, ...], *, has_list: bool) -> Meaning:
    """From kinds of single values, and of lists' items, to one meaning. A file or an object makes lists of them."""
    if set(kinds) == _NUMBERS:
        kinds = [model_pb2.INPUT_KIND_NUMBER]
    rich = [kind for kind in (*kinds, *inner) if kind not in PLAIN_KINDS.values()]
    if has_list and not rich and not kinds:
        return Meaning(model_pb2.INPUT_KIND_LIST)  # of what, the pipeline says: numbers, lists, mappings
    if kinds == [model_pb2.INPUT_KIND_MAPPING] and not has_list:
        return Meaning(model_pb2.INPUT_KIND_MAPPING)  # of what, the pipeline says
    if not has_list:
        return Meaning(_first(kinds), tuple(kinds), classes=classes)
    both = list(dict.fromkeys((*kinds, *inner)))
    if not kinds:
        return Meaning(_first(both), tuple(both), model_pb2.INPUT_ARITY_LIST, classes)
    if not rich and set(inner) - set(kinds) and not (set(kinds) | set(inner)) <= _NUMBERS:
        return Meaning(model_pb2.INPUT_KIND_UNSPECIFIED)
    return Meaning(_first(both), tuple(both), model_pb2.INPUT_ARITY_ONE_OR_LIST, classes)


def _first(kinds: list[Kind]) -> Kind:
    return kinds[0] if kinds else model_pb2.INPUT_KIND_INTERNAL


def _is_video(name: str, singles: list[Any], containers: list[Any], inner: list[Any]) -> bool:
    """A list of pictures with no single picture beside it, or what is called a video, or frames."""
    if PIL.Image.Image in inner:
        return PIL.Image.Image not in singles or _VIDEOS.search(name) is not None
    return _VIDEOS.search(name) is not None and (bool(containers) or PIL.Image.Image in singles)


def _video(name: str, kinds: list[Kind], classes: tuple[type, ...]) -> Meaning:
    """Frames, and what else there may be: one picture, where a hint allows it, or a tensor."""
    pictures = [model_pb2.INPUT_KIND_IMAGE] if model_pb2.INPUT_KIND_IMAGE in kinds else []
    rest = [kind for kind in kinds if kind not in (model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)]
    items = dict.fromkeys((model_pb2.INPUT_KIND_VIDEO, *pictures, *rest))
    return Meaning(model_pb2.INPUT_KIND_VIDEO, tuple(items), classes=classes)


def _kinds(name: str, options: Iterable[Any]) -> Iterator[Kind]:
    """Kinds of single values. A tensor is sound where its name says so."""
    options = list(options)
    if PIL.Image.Image in options:
        yield model_pb2.INPUT_KIND_IMAGE
    for option in options:
        if option in (torch.Tensor, np.ndarray):
            if _SOUND.search(name):
                yield model_pb2.INPUT_KIND_AUDIO
            yield model_pb2.INPUT_KIND_TENSOR
        elif is_object(option):
            yield model_pb2.INPUT_KIND_OBJECT
        elif typing.get_origin(option) is typing.Literal:
            yield PLAIN_KINDS.get(type(typing.get_args(option)[0]), model_pb2.INPUT_KIND_UNSPECIFIED)
        elif option is Any:
            yield model_pb2.INPUT_KIND_UNSPECIFIED
        elif (plain := plain_type(option)) in PLAIN_KINDS:
            yield PLAIN_KINDS[plain]


def _by_name(name: str, named: tuple[type, ...]) -> Kind | None:
    """What an input's name, or a class that its description names, says of values without a hint."""
    if named:
        return model_pb2.INPUT_KIND_OBJECT
    for pattern, kind in (
        (_SOUND, model_pb2.INPUT_KIND_AUDIO),
        (_PICTURES, model_pb2.INPUT_KIND_IMAGE),
        (_VIDEOS, model_pb2.INPUT_KIND_VIDEO),
    ):
        if pattern.search(name):
            return kind
    return None


def options_of(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone; without None."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = typing.get_args(hint) if is_union else (hint,)
    return [option for option in options if option is not types.NoneType and option is not None]


def plain_type(option: Any) -> Any:
    """The type without what it holds: `list` for `list[int]`."""
    return typing.get_origin(option) or option


def items_of(container: Any) -> list[Any]:
    """What a list's or tuple's items may be."""
    return [one for item in typing.get_args(container) if item is not Ellipsis for one in options_of(item)]


def is_object(option: Any) -> bool:
    """Whether it is a class that a request builds by its fields: a dataclass or a named tuple, no model's output."""
    is_class = isinstance(option, type) and not issubclass(option, (dict, enum.Enum))
    return is_class and (dataclasses.is_dataclass(option) or hasattr(option, "_field_defaults"))


def concrete(kind: type) -> list[type]:
    """The class, or those that are derived of it where it has no fields itself."""
    children: list[type] = type.__subclasses__(kind)
    derived = [one for child in children for one in concrete(child)]
    return derived if derived and not fields_of(kind) else [kind]


def fields_of(kind: Any) -> dict[str, tuple[Any, object]]:
    """Fields of such a class by name: the hint, and the default, `MISSING` where one must be given."""
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        return {field.name: (hints[field.name], _default_of(field)) for field in dataclasses.fields(kind) if field.init}
    defaults = kind._field_defaults
    return {name: (hints.get(name), defaults.get(name, dataclasses.MISSING)) for name in kind._fields}


def _default_of(field: dataclasses.Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def described_fields(classes: Iterable[type]) -> list[InputDescription]:
    """The fields of a class, or of several from which the given fields choose one."""
    found: dict[str, InputDescription] = {}
    several = tuple(classes)
    for kind in several:
        for name, (hint, default) in fields_of(kind).items():
            if name in found:
                continue
            meant = meaning(name, hint)
            found[name] = InputDescription(
                name=name,
                kind=meant.kind,
                item_kinds=meant.items,
                arity=meant.arity,
                required=default is dataclasses.MISSING and len(several) == 1,
                default_json="" if default is dataclasses.MISSING else json_or_empty(default),
                description=f"Field of {kind.__name__}." if len(several) > 1 else "",
                type_hint=shown(hint),
                choices=choices_of(hint),
            )
    return list(found.values())


def choices_of(hint: Any) -> list[str]:
    """The texts that a `Literal` allows."""
    found = [
        one for option in options_of(hint) if typing.get_origin(option) is typing.Literal for one in option.__args__
    ]
    return [one for one in found if isinstance(one, str)]


def named_classes(name: str, description: str, blocks: Iterable[ModularPipelineBlocks]) -> tuple[type, ...]:
    """Classes of objects that an input's description names, as the modules of the blocks that take it know them."""
    names = _CLASS_NAME.findall(description)
    if not names:
        return ()
    for block in blocks:
        if any(parameter.name == name for parameter in block.inputs):
            known: Mapping[str, Any] = vars(sys.modules[type(block).__module__])
            if found := tuple(known[one] for one in names if is_object(known.get(one))):
                return found
    return ()


def shown(hint: Any) -> str:
    """A hint as it is written."""
    return "" if hint is None else getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)


def json_or_empty(value: object) -> str:
    """A default as JSON; empty where it is none, or no JSON."""
    try:
        return "" if value is None else json.dumps(value)
    except (TypeError, ValueError):
        return ""
