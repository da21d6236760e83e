"""From bytes to a request: bounded before anything is built of them, decoded, and complete.

Parsing makes objects of bytes: a list of numbers becomes ten times as large, and nobody else is served meanwhile.
Only blobs (fields of type `bytes`, such as a file) stay what they are. So each method has two bounds in the protos: on
the whole message, and on what isn't a blob. For the second a large message is walked along its outer fields, a bounded
number of them, without being parsed.

The protos also mark the fields without which a call means nothing. A client that writes such a field under another
number or name sends an empty one, since unknown fields are dropped. The error names the field, which says more than
that there is no job called ''. What needs more than to be there is checked where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from triptych.errors import InvalidRequest
from triptych.security.rules import rules_of
from triptych.v1 import rules_pb2

LARGE_FIELDS_MAX = 4096
"""Fields that are walked over: 64 files have 192 in `media`, and some 1500 where they are deep in `inputs`. It takes
milliseconds."""
MESSAGE_ACCEPTED = "a message of the method's type"
EMPTY_HINT = (
    ", nor is anything else (are fields named as in the protos, job_id and not jobId? Node needs keepCase: true)"
)
"""Some libraries drop fields that they don't know before they send anything, and only say so here."""


def parser(method: str, build: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What makes a method's request of its bytes; `build` is the generated `FromString`.

    It raises InvalidRequest for bytes that are too many or of another type, and for a field that is missing.
    """
    found = getattr(getattr(build, "__self__", None), "DESCRIPTOR", None)
    descriptor = found if isinstance(found, Descriptor) else None

    def parse(data: bytes) -> Any:
        check_size(method, data, descriptor)
        try:
            message = build(data)
        except DecodeError as error:
            raise InvalidRequest("request", f"{len(data)} bytes", MESSAGE_ACCEPTED) from error
        if descriptor is not None:
            _check_required(message, descriptor)
        return message

    return parse


def check_size(method: str, data: bytes, descriptor: Descriptor | None) -> None:
    """Raise InvalidRequest for a message that is larger than its method takes. It needn't be well-formed."""
    rules = rules_of(method)
    if len(data) > rules.bytes_max:
        raise InvalidRequest("request", f"{len(data)} bytes", f"at most {rules.bytes_max} bytes")
    if len(data) <= rules.plain_bytes_max:
        return
    plain_bytes = len(data) - (_blob_bytes(memoryview(data), descriptor) if descriptor is not None else 0)
    if plain_bytes > rules.plain_bytes_max:
        shown = f"{plain_bytes} bytes without its files"
        raise InvalidRequest("request", shown, f"at most {rules.plain_bytes_max} bytes")


@functools.cache
def required_fields(descriptor: Descriptor) -> Sequence[FieldDescriptor]:
    """The fields of a message that must be set."""
    return [field for field in descriptor.fields if field.GetOptions().Extensions[rules_pb2.required]]


def _check_required(message: Any, descriptor: Descriptor, within: str = "") -> None:
    for field in required_fields(descriptor):
        value = "" if field.has_presence else getattr(message, field.name)
        if not (message.HasField(field.name) if field.has_presence else value != field.default_value):
            hint = "" if message.ByteSize() else EMPTY_HINT
            accepted = f"a value: {descriptor.name} needs it, and it isn't set{hint}"
            raise InvalidRequest(within + field.name, value, accepted)
        if field.message_type is not None:
            _check_required(getattr(message, field.name), field.message_type, f"{within}{field.name}.")


def _blob_bytes(data: memoryview, descriptor: Descriptor) -> int:
    """Bytes of all blobs, found along the fields that hold some at any depth."""
    total = 0
    count = 0
    parts = [(0, len(data), descriptor)]
    try:
        while parts:
            position, end, message = parts.pop()
            while position < end:
                count += 1
                if count > LARGE_FIELDS_MAX:
                    raise InvalidRequest(
                        "request", f"{count} fields or more", f"at most {LARGE_FIELDS_MAX} of so large a one"
                    )
                tag, position = _varint(data, position)
                kind = tag & 7
                if kind == 0:
                    _value, position = _varint(data, position)
                elif kind == 2:
                    size, position = _varint(data, position)
                    field = message.fields_by_number.get(tag >> 3)
                    if position + size > end:
                        raise IndexError("a field ends after its message")
                    if field is not None and field.type == FieldDescriptor.TYPE_BYTES:
                        total += size
                    elif field is not None and field.message_type and _holds_blobs(field.message_type):
                        parts.append((position, position + size, field.message_type))
                    position += size
                else:
                    position += {1: 8, 5: 4}[kind]
    except (IndexError, KeyError) as error:
        raise InvalidRequest("request", f"{len(data)} bytes", MESSAGE_ACCEPTED) from error
    return total


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError("a number of more than 64 bits")


@functools.cache
def _holds_blobs(descriptor: Descriptor) -> bool:
    seen = {descriptor.full_name}
    left = [descriptor]
    while left:
        for field in left.pop().fields:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return True
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                left.append(inner)
    return False
