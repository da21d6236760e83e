"""No piece of what a caller wrote is left in what a library says about it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import SHOWN_CHARS_MAX, InvalidRequest, NotFound, public_text
from triptych.model.inputs import SETTINGS, texts_of
from triptych.security.privacy import RUN_CHARS, redact, texts_in

PROMPT = "a zebra crossing in the rain, with 'quotes'\nand lines"


def test_whole_quoted_cut_and_escaped() -> None:
    for said in (
        f"can't use {PROMPT}.",
        f"can't use {PROMPT!r}.",
        f"can't use {PROMPT[:20]}….",
        f"can't use {PROMPT[9:]}.",
    ):
        left = redact(said, [PROMPT])
        assert left.startswith("can't use ")
        assert not any(word in left for word in ("zebra", "crossing", "quotes"))


def test_words_that_only_look_alike_stay() -> None:
    assert redact("the category of a cat", ["cats", "cat "]) == "the category of a cat"
    assert redact("the word cats, quoted", ["cats"]) == "the word …, quoted"
    assert redact("expected 3 channels", ["a red circle"]) == "expected 3 channels"


@given(st.text(min_size=RUN_CHARS), st.text(), st.text())
def test_nothing_of_a_text_survives(private: str, before: str, after: str) -> None:
    left = redact(before + private + after, [private])
    inner = private.strip()
    runs = {inner[start : start + RUN_CHARS] for start in range(len(inner) - RUN_CHARS + 1)}
    assert not [run for run in runs if run in left and "…" not in run and "�" not in run]


def test_texts_at_any_depth() -> None:
    """Names of inputs are not a caller's; the keys of what stands inside a value are."""
    assert texts_in({"a": "x", "b": ["y", {"c": ("z", 1)}], "d": 2.0, "e": None}) == ["x", "y", "c", "z"]


def test_a_later_stages_texts_are_in_values_and_guiders_options() -> None:
    """It has no request to look into."""
    settings = {"seed": 1, "overrides": {"guider": {"scale": 2.0, "mode": "a canary", "layers": {"one": ["more"]}}}}
    inputs = {"joint_kwargs": {"key": "value"}, SETTINGS: settings, "triptych.kwargs_mapping": {"group": ["name"]}}
    assert texts_of(inputs) == ["key", "value", "a canary", "one", "more"]


def test_what_may_be_said_of_an_error() -> None:
    refused = InvalidRequest(f"parameters.{PROMPT}", PROMPT, "a number")
    for error in (refused, InvalidRequest.from_message(str(refused)[:SHOWN_CHARS_MAX]), ValueError(PROMPT)):
        assert not any(word in public_text(error) for word in ("zebra", "crossing", "quotes"))
    assert public_text(refused) == "InvalidRequest: parameters can't be used; accepted: a number"
    assert public_text(NotFound("there is no job 'x'")) == "NotFound: there is no job 'x'"
    assert public_text(RuntimeError("text of a library")) == "RuntimeError"
