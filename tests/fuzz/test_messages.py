"""Every message type of triptych.v1 against random and bent bytes: refused, or a message that survives a round trip."""

from __future__ import annotations

import importlib
import pkgutil
import random
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.nasty import Nasty, mutate
from triptych import v1
from triptych.v1 import room_pb2

FILES = [
    importlib.import_module(f"{v1.__name__}.{module.name}").DESCRIPTOR
    for module in pkgutil.iter_modules(v1.__path__)
    if module.name.endswith("_pb2")
]
DEPTH_LIMIT = 100
"""Nested messages that protobuf parses; one more is a DecodeError and no overflow of the stack."""


def types_of(descriptors: Any) -> list[Descriptor]:
    found = []
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            found += [descriptor, *types_of(descriptor.nested_types)]
    return found


TYPES = [one for file in FILES for one in types_of(file.message_types_by_name.values())]
by_type = pytest.mark.parametrize("descriptor", TYPES, ids=lambda one: one.name)


def parse(descriptor: Descriptor, data: bytes) -> Message | None:
    """The message in these bytes, or None where they are none. Anything but a DecodeError fails the test."""
    try:
        return message_factory.GetMessageClass(descriptor).FromString(data)
    except DecodeError:
        return None


def check(descriptor: Descriptor, data: bytes) -> None:
    message = parse(descriptor, data)
    if message is None:
        return
    written = message.SerializeToString(deterministic=True)
    again = parse(descriptor, written)
    assert again is not None
    # Compared as bytes: NaN differs from itself.
    assert again.SerializeToString(deterministic=True) == written
    assert str(again) == str(message)


def test_there_are_types() -> None:
    assert len(TYPES) > 70
    assert len({one.full_name for one in TYPES}) == len(TYPES)


@by_type
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes(descriptor: Descriptor, data: bytes) -> None:
    check(descriptor, data)


@by_type
@settings(max_examples=60, deadline=None)
@given(rng=st.randoms(use_true_random=True))
def test_bent_messages(descriptor: Descriptor, rng: random.Random) -> None:
    whole = Nasty(rng).fill(message_factory.GetMessageClass(descriptor)()).SerializeToString()
    check(descriptor, whole)
    for _ in range(8):
        check(descriptor, mutate(rng, whole))


@by_type
@settings(max_examples=20, deadline=None)
@given(number=st.integers(1000, 18_999), value=st.integers(0, 2**64 - 1), text=st.binary(max_size=40))
def test_what_a_later_version_adds_survives(descriptor: Descriptor, number: int, value: int, text: bytes) -> None:
    """Fields that this version doesn't know are kept and written again, so that it may stand between two later ones."""
    later = descriptor_pb2.FileDescriptorProto(name="later.proto", package="later", syntax="proto3")
    message = later.message_type.add(name="Later")
    kinds = descriptor_pb2.FieldDescriptorProto
    optional = kinds.LABEL_OPTIONAL
    message.field.add(name="value", number=number, type=kinds.TYPE_UINT64, label=optional)
    message.field.add(name="text", number=number + 1, type=kinds.TYPE_BYTES, label=optional)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(later)
    later_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("later.Later"))
    data = later_class(value=value, text=text).SerializeToString()
    known = parse(descriptor, data)
    assert known is not None
    assert len(unknown_fields.UnknownFieldSet(known)) == bool(value) + bool(text)
    assert later_class.FromString(known.SerializeToString()) == later_class(value=value, text=text)


def test_depth_ends_in_an_error() -> None:
    def nested(depth: int) -> bytes:
        data = b""
        for _ in range(depth):  # Value{list{items{...}}}, written by hand because protobuf refuses to
            for tag in (b"\x0a", b"\x5a"):
                data = tag + _varint(len(data)) + data
        return data

    assert parse(room_pb2.Value.DESCRIPTOR, nested(DEPTH_LIMIT // 2 - 2)) is not None
    for depth in (DEPTH_LIMIT, 1000, 20_000):
        assert parse(room_pb2.Value.DESCRIPTOR, nested(depth)) is None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
