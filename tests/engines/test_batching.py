"""Calls that run as one give the bits of calls that run alone, or don't run as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from services.text_encoder.batching import Batching, joined, kind_of, size_of, split
from services.text_encoder.models import Models
from triptych.config import TextEncoderConfig
from triptych.stages.library import ModelOutput
from triptych.stages.whole import Whole
from triptych.transport import calls


def arguments(seed: int, length: int = 6) -> tuple[list[Any], dict[str, Any]]:
    tokens = torch.randint(0, 200, (1, length), generator=torch.Generator().manual_seed(seed))
    return [tokens], {"attention_mask": torch.ones_like(tokens), "output_hidden_states": True}


def packed(seeds: Sequence[int]) -> list[tuple[bytes, Sequence[str]]]:
    return [(calls.pack(*arguments(seed)), ()) for seed in seeds]


@pytest.fixture(scope="module")
def models(model_folder: Callable[[str], str]) -> Models:
    folder = model_folder("qwen_image")
    return Models(Whole.open(folder), TextEncoderConfig(model=folder, batching="equal", threads=1))


def test_batches_are_equal_to_the_bit_or_are_not_made(models: Models) -> None:
    """The first four are compared; the next four are what was found out."""
    first, second = packed(range(4)), packed(range(4, 8))
    for inputs in (first, second):
        made, together = models.answers("text_encoder", "", inputs)
        assert together in ((1,) if inputs is first else (1, 4))
        for one, data in zip(made, inputs, strict=True):
            (alone,), _ = models.answers("text_encoder", "", [data])
            assert [bytes(buffer) for buffer in one.buffers] == [bytes(buffer) for buffer in alone.buffers]


def test_only_calls_of_one_shape_are_of_one_kind() -> None:
    short, long = arguments(1), arguments(1, length=7)
    other = arguments(2)
    masked = arguments(3)
    masked[1]["attention_mask"][0, 0] = 0
    kinds = [kind_of(calls.pack(*one), one) for one in (short, long, other, masked)]
    assert kinds[0] == kinds[2]
    assert len(set(kinds)) == 3


def test_a_batch_that_changes_bits_is_found_out_once() -> None:
    runs: list[int] = []

    def run(one: tuple[list[Any], dict[str, Any]]) -> ModelOutput:
        runs.append(one[0][0].shape[0])
        return ModelOutput(value=one[0][0] * one[0][0].shape[0])

    batching = Batching("equal")
    for _ in range(2):
        outputs, together = batching.run("kind", [arguments(seed) for seed in (1, 2)], run)
        assert together == 1
        assert torch.equal(outputs[1]["value"], arguments(2)[0][0])
    assert runs == [1, 1, 2, 1, 1]


def test_always_asks_for_no_proof_and_off_makes_no_batch() -> None:
    def run(one: tuple[list[Any], dict[str, Any]]) -> list[torch.Tensor]:
        return [one[0][0] + 1]

    both = [arguments(seed) for seed in (1, 2)]
    assert Batching("always").run("kind", both, run)[1] == 2
    assert Batching("off").run("kind", both, run)[1] == 1


def test_what_is_joined_is_split_again() -> None:
    parts = [arguments(seed) for seed in range(3)]
    whole = joined(parts)
    assert size_of(parts[0]) == 1
    assert whole[0][0].shape == (3, 6)
    for one, part in zip(split(whole, 1, 3), parts, strict=True):
        assert torch.equal(one[0][0], part[0][0])
    with pytest.raises(ValueError, match="one for each input"):
        split([torch.zeros(2, 4)], 1, 3)
