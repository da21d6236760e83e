"""Removes callers' texts from libraries' messages, which quote their input whole, cut short or escaped.

Every text of a request is private: prompts, and the texts among its parameters. Pieces of it are found by runs of
`RUN_CHARS` letters, so that neither a cut nor an escaped quote hides one. Each piece becomes `…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RUN_CHARS = 8
"""Shortest piece of a private text that is removed: about a word."""
WORD_CHARS_MIN = 4
"""Texts from this length to `RUN_CHARS` are removed as whole words only. Shorter ones say nothing and are common."""
PRIVATE_CHARS_MAX = 1 << 20
"""Most characters of private texts that are looked for: sixteen prompts of the longest kind."""


def texts_in(value: Any) -> list[str]:
    """Every text inside plain values, at any depth, but not the keys of an outermost mapping: they name inputs."""
    items = value.values() if isinstance(value, Mapping) else [value]
    return [text for item in items for text in _texts(item)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def redact(text: str, private: Iterable[str]) -> str:
    """`text` without any piece of the private texts."""
    runs: set[str] = set()
    left = PRIVATE_CHARS_MAX
    for one in private:
        one = one.strip()[: max(left, 0)]
        left -= len(one)
        if len(one) >= RUN_CHARS:
            runs.update(one[start : start + RUN_CHARS] for start in range(len(one) - RUN_CHARS + 1))
        elif len(one) >= WORD_CHARS_MIN:
            text = re.sub(rf"(?<!\w){re.escape(one)}(?!\w)", "…", text)
    covered = bytearray(len(text))
    for start in range(len(text) - RUN_CHARS + 1):
        if text[start : start + RUN_CHARS] in runs:
            covered[start : start + RUN_CHARS] = bytes([1]) * RUN_CHARS
    marked = "".join("\0" if hidden else char for char, hidden in zip(text.replace("\0", "�"), covered, strict=True))
    return re.sub("\0+", "…", marked)
