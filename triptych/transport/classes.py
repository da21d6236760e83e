"""The classes of diffusers and transformers that cross from stage to stage, rebuilt by name.

Only enumerations, model outputs and diffusers' plain dataclasses cross. A dataclass of transformers may act when it is
made, so it doesn't.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import OrderedDict
from typing import Any

from triptych.errors import SourceCorrupt
from triptych.v1 import room_pb2

CLASS_PACKAGES = ("diffusers", "transformers")


def is_named(cls: type) -> bool:
    """Whether a reader can find a class of these packages by its name."""
    return _package(cls.__module__) in CLASS_PACKAGES and "<locals>" not in cls.__qualname__


def is_rebuilt(cls: type) -> bool:
    """Whether a class of these packages may be called with its fields."""
    return dataclasses.is_dataclass(cls) and (issubclass(cls, OrderedDict) or _package(cls.__module__) == "diffusers")


def find(path: str, part: room_pb2.Dataclass | room_pb2.EnumMember, base: type) -> Any:
    """The subclass of `base` that `part` names. Raises SourceCorrupt. Only attributes that are classes are followed."""
    if _package(part.module) not in CLASS_PACKAGES:
        raise SourceCorrupt(f"{path}: {part.module!r} is outside {' and '.join(CLASS_PACKAGES)}")
    try:
        found: Any = importlib.import_module(part.module)
        for name in part.name.split("."):
            found = getattr(found, name, None)
    except Exception as error:  # a foreign module may raise anything when it's imported
        raise SourceCorrupt(f"{path}: {part.module!r} can't be imported ({type(error).__name__})") from error
    if not (isinstance(found, type) and issubclass(found, base) and found.__module__ == part.module):
        raise SourceCorrupt(f"{path}: no class {part.module}.{part.name} that can cross")
    return found


def _package(module: str) -> str:
    return module.partition(".")[0]
