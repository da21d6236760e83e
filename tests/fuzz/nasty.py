"""Bad values on purpose: messages of any descriptor, filled with what breaks parsers, and bytes bent out of shape.

All of it is drawn from one `random.Random`, so that a seed (or hypothesis, which can hand out a `Random` that it
shrinks) repeats it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

DEPTH_MAX = 6
"""Deepest nesting of generated messages, `Struct`s and the like included; raw bytes go deeper."""

INTEGERS = (0, 1, 2, 3, 7, 63, 64, 127, 128, 255, 256, 4096, 4097, 2**20 - 1, 2**20, 2**31 - 1, 2**32 - 1, 2**62)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, 2.0**63, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "a",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/shm/../../etc/passwd",
    "/dev/shm/triptych-arena-\0",
    "/dev/shm/triptych-arena-" + "x" * 300,
    "file:///etc/passwd",
    "memory://x/../y",
    "simplecache::http://127.0.0.1:1/x",
    "unix:/tmp/nothing",
    "127.0.0.1:1",
    "-1",
    "9" * 5000,
    "nan",
    "\0",
    "a\0b",
    "\x1b[31m\r\n",
    "💥" * 300,
    "\u202e\ufeff\uffff",
    "'; DROP TABLE jobs; --",
    "%s%n{0}$(true)",
    "00-" + "f" * 32 + "-" + "f" * 16 + "-01",
    "prompt",
    "guider.guidance_scale",
    "A" * 70_000,
)
BLOBS = (b"", b"\0", b"\xff" * 16, bytes(16), b"\x89PNG\r\n\x1a\n", b"GIF89a\xff\xff\xff\xff", b"\0\0\0\x18ftypisom")

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)

Known = Mapping[str, Sequence[Any]]
"""Values worth trying, by field name: ids that exist, leases that are held."""


class Nasty:
    """A source of bad messages. `known` are values that mean something to who will read them."""

    def __init__(self, rng: random.Random, known: Known | None = None) -> None:
        self._rng, self._known = rng, known or {}

    def fill(self, message: Message, depth: int = 0) -> Message:
        """Set some of the fields of an empty message, and return it."""
        descriptor: Descriptor = message.DESCRIPTOR
        density = self._rng.choice((0.3, 0.7, 1.0))
        for field in descriptor.fields:
            if self._rng.random() < density:
                self._set(message, field, depth)
        return message

    def bend(self, message: Message) -> Message:
        """Change a few fields anywhere in a message, and return it: most of what it was still stands."""
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            part = self._rng.choice(_parts(message))
            fields = part.DESCRIPTOR.fields
            if fields:
                field = self._rng.choice(fields)
                if self._rng.random() < 0.5 or not field.is_repeated:
                    part.ClearField(field.name)
                if self._rng.random() < 0.9:
                    self._set(part, field, DEPTH_MAX - 2)
        return message

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        known = self._known.get(field.name)
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        if is_message and depth >= DEPTH_MAX:
            return
        if field.is_repeated:
            self._set_repeated(message, field, depth)
        elif is_message:
            part = getattr(message, field.name)
            part.SetInParent()
            if known and isinstance(known[0], Message) and self._rng.random() < 0.6:
                part.ParseFromString(self._rng.choice(known).SerializeToString())
                if self._rng.random() < 0.3:
                    self.bend(part)
            else:
                self.fill(part, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field))

    def _set_repeated(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        values = getattr(message, field.name)
        for _ in range(self._rng.choice((0, 1, 1, 2, 5))):
            entry = field.message_type
            if entry is not None and entry.GetOptions().map_entry:
                key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
                if value.type == FieldDescriptor.TYPE_MESSAGE:
                    self.fill(values[self._scalar(key)], depth + 1)
                else:
                    values[self._scalar(key)] = self._scalar(value)
            elif entry is not None:
                self.fill(values.add(), depth + 1)
            else:
                values.append(self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        known = self._known.get(field.name)
        if known and not isinstance(known[0], Message) and self._rng.random() < 0.5:
            return self._rng.choice(known)
        kind = field.cpp_type
        if kind in _RANGES:
            return self._integer(kind, field)
        if kind in _FLOATS:
            return self._rng.choice((*NUMBERS, self._rng.uniform(-1e6, 1e6)))
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._rng.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._rng.choice((*BLOBS, self._rng.randbytes(self._rng.choice((1, 15, 16, 17, 300)))))
        return self._rng.choice(TEXTS)

    def _integer(self, kind: int, field: FieldDescriptor) -> int:
        least, most = _RANGES[kind]
        if field.enum_type is not None and self._rng.random() < 0.8:
            return int(self._rng.choice(field.enum_type.values).number)
        value = self._rng.choice((*INTEGERS, least, most, most - 1, self._rng.randint(least, most)))
        value = -value if least < 0 and self._rng.random() < 0.2 else value
        return min(max(value, least), most)


def _parts(message: Message) -> list[Message]:
    """The message and every message inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            values = list(value.values()) if inner.type == FieldDescriptor.TYPE_MESSAGE else []
        else:
            values = list(value) if field.is_repeated else [value]
        for one in values:
            found += _parts(one)
    return found


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """`data` with a few of the changes that break parsers: flipped, cut, doubled, spliced, lengths and tags wrong."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        _CHANGES[rng.randrange(len(_CHANGES))](rng, mutated, others)
    return bytes(mutated[:BYTES_MAX])


BYTES_MAX = 1 << 16
"""Longest mutated input: beyond a slot, a page, and any header."""


def _flip(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 2, 8, len(data)))]


def _insert(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _double(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 9))


def _splice(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(data) + 1)
    data[start:] = other[rng.randrange(len(other) + 1) :]


def _word(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    """A whole number where one may stand."""
    size = rng.choice((2, 4, 8))
    if len(data) >= size:
        place = rng.randrange(len(data) - size + 1) // size * size
        value = rng.choice((*INTEGERS, 2**64 - 1, 2**63)) % 2 ** (8 * size)
        data[place : place + size] = value.to_bytes(size, "little")


_Change = Callable[[random.Random, bytearray, Sequence[bytes]], None]
_CHANGES: tuple[_Change, ...] = (_flip, _overwrite, _cut, _insert, _double, _splice, _word)
