"""Which adapters a fleet offers, and which files a job's names mean, without a model."""

from __future__ import annotations

import pytest

from triptych.errors import InvalidRequest
from triptych.model import adapters
from triptych.v1.job_pb2 import Adapter, GenerationRequest
from triptych.v1.model_pb2 import AdapterDescription, ComponentDescription, ModelDescription

COMPONENTS = [
    ComponentDescription(name="text_encoder", roles=["encoder"]),
    ComponentDescription(name="transformer", roles=["transformer"]),
    ComponentDescription(name="vae", roles=["encoder", "decoder"]),
]


def model(**digests: str) -> ModelDescription:
    found = [AdapterDescription(name=name, digest=one, components=["transformer"]) for name, one in digests.items()]
    return ModelDescription(components=COMPONENTS, adapters=found)


def names(*workers: tuple[str, ModelDescription]) -> list[str]:
    return [one.name for one in adapters.offered(workers)]


def test_all_workers_that_need_an_adapter_must_have_it():
    full = model(a="1", b="2")
    assert names(("encoder", full), ("transformer", full), ("decoder", model())) == ["a", "b"]
    assert names(("encoder", full), ("transformer", full), ("transformer", model(a="1"))) == ["a"]
    assert names(("encoder", model(b="2")), ("transformer", full)) == ["b"]
    assert names(("decoder", model())) == []


def test_other_files_under_one_name_are_not_offered():
    assert names(("encoder", model(a="1")), ("transformer", model(a="1")), ("transformer", model(a="9"))) == []


def test_an_accepted_request_names_its_files():
    request = GenerationRequest(adapters=[Adapter(name="a", weight=0.5), Adapter(name="b")])
    adapters.pin(request, model(a="1", b="2"))
    assert [one.digest for one in request.adapters] == ["1", "2"]
    assert adapters.missing(request, model(a="1", b="2")) == ""
    assert "'b' isn't in this worker's registry" in adapters.missing(request, model(a="1"))
    assert "'a' has digest 9 here" in adapters.missing(request, model(a="9", b="2"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([Adapter(name="c")], "accepted: a, b"),
        ([Adapter(name="a"), Adapter(name="a")], "each adapter once"),
        ([Adapter(name="a", digest="9")], "none, or 1, which 'a' has now"),
        ([Adapter(name="a", weight=float("inf"))], "-100 to 100"),
        ([Adapter(name="a", component_weights={"vae": 1.0})], "components that 'a' touches: transformer"),
        ([Adapter(name="a")] * 9, "at most 8"),
    ],
)
def test_what_no_fleet_takes_is_refused(asked: list[Adapter], sentence: str):
    with pytest.raises(InvalidRequest, match=sentence):
        adapters.used(GenerationRequest(adapters=asked), model(a="1", b="2"))


def test_a_fleet_without_adapters_says_so():
    with pytest.raises(InvalidRequest, match="this fleet has no adapters"):
        adapters.used(GenerationRequest(adapters=[Adapter(name="a")]), model())
