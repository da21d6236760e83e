"""The state codec against arbitrary and bent manifests: values, or SourceCorrupt; no other error, memory or code."""

from __future__ import annotations

import random
import sys
import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import samples
from tests.fuzz.nasty import Nasty, mutate
from triptych.errors import SourceCorrupt
from triptych.transport import codec
from triptych.v1 import room_pb2

ROOM_BYTES = 8192
PEAK_BYTES_MAX = 2**22
"""What decoding may take at once: a manifest of 64 KiB and a room of 8 can't need more."""


def decode(data: bytes) -> None:
    """Decode these bytes as a manifest, under measurement."""
    tracemalloc.start()
    try:
        codec.decode(room_pb2.Manifest.FromString(data), memoryview(bytearray(ROOM_BYTES)))
    except (SourceCorrupt, DecodeError):
        return
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < PEAK_BYTES_MAX


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What honest manifests import, before memory is measured and modules are counted."""
    for data in samples.manifests():
        try:
            codec.decode(room_pb2.Manifest.FromString(data), memoryview(bytearray(ROOM_BYTES)))
        except SourceCorrupt:
            continue


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    decode(data)


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=True))
def test_manifests_of_anything(rng: random.Random) -> None:
    data = Nasty(rng, samples.KNOWN).fill(room_pb2.Manifest()).SerializeToString()
    decode(data)
    decode(mutate(rng, data, samples.manifests()))


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=True))
def test_bent_good_manifests(rng: random.Random) -> None:
    decode(mutate(rng, rng.choice(samples.manifests()), samples.manifests()))


@pytest.mark.parametrize("module", samples.MODULES)
def test_no_module_is_imported_but_of_the_two_packages(module: str) -> None:
    """And none of theirs is run as a program: importing is all that a name can make happen."""
    before = set(sys.modules)
    for name in samples.NAMES:
        for kind in ("enum_member", "dataclass", "model_output"):
            manifest = room_pb2.Manifest()
            part = getattr(manifest.values["x"], kind)
            part.module, part.name = module, name
            decode_quietly(manifest)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not module or module.partition(".")[0] in ("diffusers", "transformers") or not new


def decode_quietly(manifest: room_pb2.Manifest) -> None:
    """Decode; a class that is made of nothing is fine, and so is a refusal."""
    try:
        codec.decode(manifest, memoryview(bytearray(ROOM_BYTES)))
    except SourceCorrupt:
        return
