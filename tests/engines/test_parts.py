"""An output of which only parts were sent reads as the whole one, whichever way it is read, and notes what was."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.clip.modeling_clip import CLIPOutput

from triptych.stages import parts

STATES = [f"hidden_states.{index}" for index in range(4)]
READS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "a field": (lambda one: one.logits, ["logits"]),
    "a key": (lambda one: one["logits"], ["logits"]),
    "get": (lambda one: one.get("logits"), ["logits"]),
    "a place": (lambda one: one[0], ["logits"]),
    "an item from the end": (lambda one: one.hidden_states[-1], STATES[3:]),
    "an item of a place": (lambda one: one[1][2], STATES[2:3]),
    "a slice": (lambda one: one.hidden_states[1:3], STATES[1:3]),
    "a slice of fields": (lambda one: one[:1], ["logits"]),
    "iteration": (lambda one: list(one.hidden_states), STATES),
    "unpacking": (lambda one: [*one.hidden_states], STATES),
    "zip": (lambda one: [item for item, _ in zip(one.hidden_states, "ab", strict=False)], STATES[:3]),
    "reversed": (lambda one: next(reversed(one.hidden_states)), STATES[3:]),
    "stack, which looks into tuples itself": (lambda one: torch.stack(one.hidden_states, dim=-1), STATES),
    "cat of a sum": (
        lambda one: torch.cat(operator.add(one.hidden_states, (one.logits,)), dim=-1),
        ["logits", *STATES],
    ),
    "a sum from the right": (lambda one: operator.add((one.logits,), one.hidden_states), ["logits", *STATES]),
    "values": (lambda one: list(one.values()), ["logits", *STATES]),
    "dict": (lambda one: dict(one), ["logits", *STATES]),
    "double stars": (lambda one: dict(**one), ["logits", *STATES]),
    "to_tuple": (lambda one: one.to_tuple()[0], ["logits"]),
    "a field that the model left out": (lambda one: one.loss, []),
    "the length": (lambda one: (len(one), len(one.hidden_states)), []),
    "all of it": (lambda one: one, ["logits", *STATES]),
}
"""What is read, and the paths that count as read then."""


def output() -> CausalLMOutputWithPast:
    numbers = torch.arange(12.0).reshape(1, 3, 4)
    return CausalLMOutputWithPast(logits=numbers, hidden_states=tuple(numbers + 100 * index for index in range(1, 5)))


def equal(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return type(one) is torch.Tensor and torch.equal(one, other)
    if isinstance(other, dict):
        return type(one) is type(other) and list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(other, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("sent", [None, (), ("logits",), ("hidden_states.3",)])
@pytest.mark.parametrize("way", READS)
def test_a_read_gives_the_models_own_value_and_is_noted(way: str, sent: tuple[str, ...] | None) -> None:
    read, expected = READS[way]
    noted: set[str] = set()
    fetched: list[bool] = []

    def whole() -> Any:
        fetched.append(True)
        return output()

    crossed = output() if sent is None else parts.each_tensor(output(), torch.zeros_like)
    for path in sent or ():
        _put(crossed, path)
    made = parts.noting(crossed, sent, noted.add, whole)
    assert isinstance(made, CausalLMOutputWithPast)
    assert not noted
    assert equal(parts.plain(read(made)), read(output()))
    assert noted == set(expected)
    assert bool(fetched) == bool(sent is not None and set(expected) - set(sent))


def _put(crossed: CausalLMOutputWithPast, path: str) -> None:
    if path == "logits":
        crossed.logits = output().logits
    else:
        crossed.hidden_states = (*crossed.hidden_states[:3], output().hidden_states[3])


def test_what_is_wanted_crosses_and_the_rest_is_empty() -> None:
    made = parts.chosen(output(), ["hidden_states.2", "no_such_field"])
    assert [tensor.numel() for tensor in (made.logits, *made.hidden_states)] == [0, 0, 0, 12, 0]
    assert torch.equal(made.hidden_states[2], output().hidden_states[2])
    assert equal(parts.chosen(output(), []), output())


def test_outputs_in_outputs_have_paths_too() -> None:
    inner = BaseModelOutputWithPooling(last_hidden_state=torch.ones(2), pooler_output=torch.zeros(2))
    noted: set[str] = set()
    made = parts.noting(CLIPOutput(text_model_output=inner), None, noted.add, lambda: None)
    assert torch.equal(made.text_model_output.pooler_output, torch.zeros(2))
    assert noted == {"text_model_output.pooler_output"}


def test_a_copy_is_as_good() -> None:
    made = parts.noting(parts.chosen(output(), ["logits"]), ("logits",), lambda _path: None, output)
    assert equal(parts.plain(copy.copy(made)), output())


def test_what_is_no_model_output_is_left_as_it_is() -> None:
    value = (torch.ones(1), {"a": 1})
    assert parts.noting(value, None, lambda _path: None, lambda: None) is value
