"""How many tokens of a prompt an encoder's tokenizers cut off, for every family alike.

Blocks truncate long texts silently. So each tokenizer that the encoder holds is watched: before a call that truncates,
the texts are tokenized once more without a bound, which takes milliseconds. Text that a template puts after the prompt
is cut first and doesn't count. Where blocks cut the embeddings at `max_sequence_length`, after the template's
beginning, that counts, too. Results stay the same.

Thread rule: everything here belongs to the stage's thread.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

LENGTH_INPUT = "max_sequence_length"
_CALL = "_encode_plus"
"""What every way into a tokenizer of transformers goes through, with the bounds worked out."""
_NEVER = "do_not_truncate"


class TokensCut(NamedTuple):
    """What one tokenizer left out of one input."""

    input: str
    tokenizer: str
    token_count: int


class TokenWatch:
    """Watches the tokenizers among a stage's components, also those inside of processors."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._texts: dict[str, str] = {}
        self._length_max: int | None = None
        self._cut: dict[tuple[str, str], int] = {}
        for name, component in components.items():
            tokenizer = getattr(component, "tokenizer", component)
            original = getattr(tokenizer, _CALL, None)
            if callable(original):
                setattr(tokenizer, _CALL, self._watched(name, original))

    def begin(self, values: Mapping[str, Any]) -> None:
        """Forget the job before; `values` are the inputs of this one."""
        self._texts = {name: text for key, value in values.items() for name, text in _named(key, value) if text.strip()}
        length_max = values.get(LENGTH_INPUT)
        self._length_max = length_max if isinstance(length_max, int) else None
        self._cut = {}

    @property
    def cuts(self) -> list[TokensCut]:
        """What was cut off of the job's texts since `begin`."""
        return [TokensCut(*key, count) for key, count in self._cut.items()]

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            length_max = kwargs.get("max_length")
            if length_max and str(getattr(kwargs.get("truncation_strategy"), "value", _NEVER)) != _NEVER:
                special = kwargs.get("add_special_tokens", True)
                for text in _texts(kwargs.get("text"), kwargs.get("text_pair")):
                    self._note(name, text, length_max, functools.partial(_count, original, special))
            return original(*args, **kwargs)

        return call

    def _note(self, tokenizer: str, text: str, length_max: int, count: Callable[[str], int]) -> None:
        source = self._source(text)
        if not source:
            return
        before, found, after = text.partition(self._texts[source])
        after_count = count(after) - count("") if found and after else 0
        limit = length_max
        if found and self._length_max is not None:
            before_count = count(before) - count("") if before else 0
            limit = min(limit, before_count + self._length_max)
        cut = count(text) - after_count - limit
        if cut > 0:
            key = (source, tokenizer)
            self._cut[key] = max(self._cut.get(key, 0), cut)

    def _source(self, text: str) -> str:
        """The input that a text holds, or is most like: blocks clean texts, and put them into templates."""
        plain = _plain(text)
        inside = [name for name, value in self._texts.items() if _plain(value) in plain]
        if inside:
            return max(inside, key=lambda name: len(_plain(self._texts[name])))
        words = set(plain.split())
        shared = {name: len(words & set(_plain(value).split())) for name, value in self._texts.items()}
        best = max(shared, key=lambda name: shared[name], default="")
        return best if best and shared[best] else ""


def _named(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """An input's texts with their names; those of a list are numbered."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        yield from ((f"{name}[{number}]", one) for number, one in enumerate(value) if isinstance(one, str))


def _count(original: Callable[..., Any], special: bool, text: str) -> int:
    """Tokens of a text, with those that the tokenizer adds if `special`."""
    return len(original(text=text, add_special_tokens=special, verbose=False)["input_ids"])


def _texts(text: Any, pair: Any) -> Iterator[str]:
    if pair is None:
        yield from (one for one in (text if isinstance(text, list | tuple) else [text]) if isinstance(one, str))


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
