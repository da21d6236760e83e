"""TOML tables as frozen dataclasses: each key is a field with its purpose, its bounds, and the roles it means something
for. A key that isn't known, or a value that isn't accepted, is an InvalidRequest that names it by its path."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

from triptych.errors import InvalidRequest

Table = Mapping[str, Any]
T = TypeVar("T")

KEEPS = "keeps"
"""Results have the same bits with this option and without it."""
CHANGES = "changes"
"""Results have other bits with this option: workers of one role must agree in it."""
LOSSY = "lossy"
"""Results are another approximation of the model: named with the job, too."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list of texts"}


def option(
    default: Any,
    about: str,
    *,
    roles: str = "all",
    bits: str = KEEPS,
    kinds: tuple[type, ...] = (),
    among: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A key of a table: what it is for, which `roles` it means something for, what it does to results' `bits`.

    `kinds` are the types that a value may have, by default the default's own; `among` are the texts that it may be.
    """
    details = {"about": about, "roles": roles, "bits": bits, "kinds": kinds or (type(default),), "among": among}
    return field(default=default, metadata={**details, "least": least, "most": most})


def subtable(cls: type, about: str, *, roles: str = "all", bits: str = KEEPS) -> dict[str, Any]:
    """The details, for `dataclasses.field`, of a key whose value is a table of its own, as `cls`."""
    return {"about": about, "roles": roles, "bits": bits, "kinds": (dict,), "table": cls}


def check_keys(path: str, table: Table, known: Collection[str]) -> None:
    """Raise InvalidRequest for the first key that isn't `known`, with those that are meant most likely."""
    for key, value in table.items():
        if key not in known:
            raise InvalidRequest(join(path, key), value, accepted_keys(key, known))


def accepted_keys(key: str, known: Collection[str]) -> str:
    """What is accepted in place of an unknown key: the ones that it looks like first."""
    close = difflib.get_close_matches(key, known, 2)
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"one of the keys {', '.join(sorted(known))}{meant}"


def read(cls: type[T], path: str, table: Any) -> T:
    """A dataclass of `option` fields from its table. Raises InvalidRequest."""
    if not isinstance(table, Mapping):
        raise InvalidRequest(path, table, "a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(path, table, fields)
    return cls(**{name: _value(fields[name], join(path, name), value) for name, value in table.items()})


def join(path: str, key: str) -> str:
    """The path of a key in the table at `path`, which may end in what stands before a key, such as `file: `."""
    return f"{path}{key}" if path[-1:] in ("", " ", ".") else f"{path}.{key}"


def check_choice(path: str, value: str, among: Sequence[str]) -> None:
    """Raise InvalidRequest for a text that is none of those accepted."""
    if value not in among:
        close = difflib.get_close_matches(value, among, 2)
        meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise InvalidRequest(path, value, f"one of {', '.join(map(repr, among))}{meant}")


def _value(f: dataclasses.Field[Any], path: str, value: Any) -> Any:
    kinds: tuple[type, ...] = f.metadata["kinds"]
    is_whole = float in kinds and type(value) is int
    if type(value) not in kinds and not is_whole:
        raise InvalidRequest(path, value, " or ".join(_WORDS.get(kind, "a table") for kind in kinds))
    if cls := f.metadata.get("table"):
        return read(cls, path, value)
    if f.metadata["among"] and isinstance(value, str):
        check_choice(path, value, f.metadata["among"])
    least, most = f.metadata["least"], f.metadata["most"]
    is_number = isinstance(value, int | float)
    if is_number and ((least is not None and not value >= least) or (most is not None and not value <= most)):
        raise InvalidRequest(path, value, f"{least:g} or more" if most is None else f"{least:g} to {most:g}")
    return value
