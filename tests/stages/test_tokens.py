"""What encoders' tokenizers cut off of long texts is counted, by input and tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.models import clip_tokenizer, t5_tokenizer
from tests.stages.conftest import FAMILIES
from tests.stages.test_parity import ignore, request_of
from triptych.model.inputs import resolve
from triptych.stages.tokens import TokensCut, TokenWatch


def cuts_of(tiny: Any, **fields: Any) -> dict[tuple[str, str], int]:
    values = resolve(request_of(fields), tiny.description).for_encoder()
    tiny.stages[0].run(values, ignore, lambda: False)
    return {(cut.input, cut.tokenizer): cut.token_count for cut in tiny.stages[0].tokens_cut}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_counts_and_forgets(name: str, model: Any) -> None:
    tiny = model(name)
    names = [name for name in tiny.whole.pipeline._component_specs if "tokenizer" in name]
    long = cuts_of(tiny, prompt="word " * 1999 + "word", negative_prompt="no " * 1500)
    assert long.keys() == {(text, tokenizer) for text in ("prompt", "negative_prompt") for tokenizer in names}
    longer = cuts_of(tiny, prompt="word " * 1999 + "words", negative_prompt="no")
    assert longer == {("prompt", tokenizer): long["prompt", tokenizer] + 1 for tokenizer in names}
    assert cuts_of(tiny, prompt="a cat", negative_prompt="no") == {}


@pytest.mark.parametrize("make", [t5_tokenizer, clip_tokenizer])
def test_the_count_is_the_tokenizers_own_and_its_result_stays(make: Any) -> None:
    plain, watched = make(), make()
    watch = TokenWatch({"tokenizer_2": watched, "text_encoder": object()})
    text, bound = "word " * 90, {"padding": "max_length", "max_length": 40, "truncation": True}
    watch.begin({"prompt": text, "height": 32})
    assert watched(text, **bound) == plain(text, **bound)
    assert watch.cuts == [TokensCut("prompt", "tokenizer_2", len(plain(text)["input_ids"]) - 40)]
    watch.begin({"prompt": text})
    assert watched([text, "a"], padding="longest") == plain([text, "a"], padding="longest")
    assert watch.cuts == [], "nothing was cut"


def test_a_template_is_no_prompt_and_its_end_is_cut_first() -> None:
    plain, watched = t5_tokenizer(), t5_tokenizer()
    watch = TokenWatch({"tokenizer": watched})
    begin, prompt, end = "describe: ", "zebra " * 20 + "z", " now answer"
    watch.begin({"negative_prompt": "zebra", "prompt": prompt})
    whole = len(plain(begin + prompt + end)["input_ids"])
    watched(begin + prompt + end, max_length=whole - 4, truncation=True)
    assert watch.cuts == [], "only the template's end was cut"
    after = len(plain(end)["input_ids"]) - len(plain("")["input_ids"])
    watched(begin + prompt + end, max_length=whole - after - 3, truncation=True)
    assert watch.cuts == [TokensCut("prompt", "tokenizer", 3)]


def test_a_cleaned_text_is_still_its_inputs() -> None:
    watched = t5_tokenizer()
    watch = TokenWatch({"tokenizer": watched})
    watch.begin({"prompt": "A  Zebra &amp; a\nlion", "negative_prompt": "blurred hands"})
    watched("a zebra & a lion", max_length=4, truncation=True)
    watched("blurred hands", max_length=4, truncation=True)
    assert [cut.input for cut in watch.cuts] == ["prompt", "negative_prompt"]


def test_a_processors_tokenizer_is_watched() -> None:
    class Processor(transformers.ProcessorMixin):
        def __init__(self) -> None:
            self.tokenizer = t5_tokenizer()

    processor = Processor()
    watch = TokenWatch({"processor": processor})
    watch.begin({"prompt": "a zebra"})
    processor.tokenizer("a zebra", max_length=3, truncation=True)
    assert [(cut.input, cut.tokenizer) for cut in watch.cuts] == [("prompt", "processor")]
