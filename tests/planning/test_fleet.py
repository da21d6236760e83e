"""The arithmetic of plans: cards, what fits, how many keep pace, fleets for given cards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import InvalidRequest
from triptych.planning import cards, fleet, quantization
from triptych.planning.cards import GB, Card
from triptych.planning.fleet import RESERVE_BYTES, ComponentSize, RoleSize, StageSeconds
from triptych.roles import ROLE_NAMES


def role(name: str, weight_gb: float, activation_gb: float = 0.0) -> RoleSize:
    return RoleSize(name, [ComponentSize("model", "Model", 1, int(weight_gb * GB))], int(activation_gb * GB), 0)


def sizes(*weights_gb: float) -> dict[str, RoleSize]:
    return {name: role(name, weight_gb) for name, weight_gb in zip(ROLE_NAMES, weights_gb, strict=True)}


def test_cards_are_numbers_names_and_counts() -> None:
    assert cards.parse("80,80,24") == [Card("80", 80 * GB)] * 2 + [Card("24", 24 * GB)]
    assert cards.parse("H100:2, 24") == [Card("h100", 80 * GB)] * 2 + [Card("24", 24 * GB)]
    assert cards.parse("22.5") == [Card("22.5", 22_500_000_000)]


@pytest.mark.parametrize("text", ["", "h101", "80,", "80:", "80:0", "80:-1", "-80", "nan", "inf", "0", "80:9999"])
def test_what_is_no_card_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"gpus.*GB.*h100"):
        cards.parse(text)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1,0,1", "1,nan,1", "1,inf,1", "a,b,c", "1,-2,1"])
def test_what_are_no_stage_seconds_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"stage_seconds.*three numbers"):
        StageSeconds.parse(text)


@pytest.mark.parametrize("text", ["nf4", "encoder=", "middle=nf4", "encoder=int3", "=int8"])
def test_what_is_no_quantization_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"quantize.*ROLE=KIND"):
        quantization.parse([text])


def test_quantized_bytes_follow_the_libraries_layouts() -> None:
    sized = {name: kind.weight_bytes(256, 512, 2) for name, kind in quantization.KINDS.items()}
    weights = 256 * 512
    assert sized == {
        "int8": weights + 256 * 2,
        "float8": weights + 256 * 4,
        "int4": weights // 2 + weights // 128 * 2 * 2,
        "llm-int8": weights + 256 * 4,
        "nf4": weights // 2 + weights // 64 * 4,
    }


def test_a_role_fits_with_its_activations_and_the_reserve() -> None:
    size = role("transformer", 20, 3)
    assert size.needed_bytes == 23 * GB + RESERVE_BYTES
    assert size.fits(Card("24", 24 * GB))
    assert not size.fits(Card("23.9", 23_900_000_000))


def test_counts_keep_pace_with_the_transformers() -> None:
    slow = StageSeconds.parse("0.26,25,0.31")
    assert slow.counts(1) == {"encoder": 1, "transformer": 1, "decoder": 1}
    assert slow.counts(96) == {"encoder": 1, "transformer": 96, "decoder": 2}  # 0.9984 and 1.19
    distilled = StageSeconds(2.7, 23, 4.3)
    assert distilled.counts(8) == {"encoder": 1, "transformer": 8, "decoder": 2}


def test_a_fleet_gives_transformers_cards_and_lets_the_others_share() -> None:
    found = fleet.plan(cards.parse("80,80,24"), sizes(12, 30, 1), StageSeconds(0.26, 25, 0.31))
    assert found is not None
    assert [place.roles for place in found.placements] == [("transformer",), ("transformer",), ("encoder", "decoder")]
    assert found.jobs_per_s == 2 / 25


def test_one_card_takes_turns_where_all_have_room() -> None:
    found = fleet.plan(cards.parse("80"), sizes(12, 30, 1), StageSeconds(1, 8, 1))
    assert found is not None
    assert found.counts() == {"encoder": 1, "transformer": 1, "decoder": 1}
    assert found.jobs_per_s == 1 / 10
    assert fleet.plan(cards.parse("24"), sizes(12, 30, 1), StageSeconds(1, 8, 1)) is None


seconds = st.floats(0.01, 100)


@given(
    st.lists(st.sampled_from([16, 24, 48, 80]), min_size=1, max_size=8),
    st.tuples(*[st.floats(0.1, 60)] * 3),
    st.tuples(seconds, seconds, seconds),
)
def test_no_card_holds_more_than_it_can_and_the_pace_is_kept(
    memory_gb: list[int], weights_gb: tuple[float, float, float], times: tuple[float, float, float]
) -> None:
    roles, pace = sizes(*weights_gb), StageSeconds(*times)
    found = fleet.plan([Card(str(one), one * GB) for one in memory_gb], roles, pace)
    if found is None:
        return
    for place in found.placements:
        assert sum(roles[name].needed_bytes for name in place.roles) <= place.card.memory_bytes
    counts = found.counts()
    assert all(counts[name] > 0 for name in ROLE_NAMES)
    for name in ROLE_NAMES:  # no role is asked for more jobs a second than its workers end
        assert found.jobs_per_s * getattr(pace, name) <= counts[name] * (1 + 1e-6)
