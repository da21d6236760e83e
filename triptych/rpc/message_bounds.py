"""How large a message may be, asked of its bytes, before anything is built of them.

Parsing makes objects of bytes: a list of numbers becomes ten times as large, and nobody else is served meanwhile.
Only blobs (fields of type `bytes`, such as a file) stay what they are. So each method has two bounds: on the whole
message, and on what isn't a blob. For the second a large message is walked along its outer fields, a bounded number
of them, without being parsed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from triptych import limits
from triptych.errors import InvalidRequest

WRAPPED_BYTES_MAX = limits.REQUEST_BYTES_MAX + 2**20
"""A request that an encoder passes on, with who asked."""
PLAIN_BYTES_MAX = 2**20
"""What of a request is no file: two prompts of 64 KiB and parameters. Parsed in some 20 ms at the worst."""
SMALL_BYTES_MAX = 64 * 2**10
"""Other calls: ids, and at most a dispatch of 4 KiB."""
REPORT_BYTES_MAX = 16 * 2**20
"""A heartbeat with a preview."""
WORKER_BYTES_MAX = 2 * 2**20
"""What a worker declares or completes: 100,000 rooms, or thousands of stored files."""
LARGE_FIELDS_MAX = 1024
"""Fields that are walked over: 64 media have 192."""


@dataclass(frozen=True)
class Bound:
    """Of one method: bytes in all, and bytes that are no blobs."""

    whole: int = SMALL_BYTES_MAX
    plain: int = SMALL_BYTES_MAX


BOUNDS: dict[str, Bound] = {
    "/triptych.v1.GenerationService/CreateJob": Bound(limits.REQUEST_BYTES_MAX + SMALL_BYTES_MAX, PLAIN_BYTES_MAX),
    "/triptych.v1.EncoderService/Generate": Bound(limits.REQUEST_BYTES_MAX + SMALL_BYTES_MAX, PLAIN_BYTES_MAX),
    "/triptych.v1.FleetService/StartDirectJob": Bound(WRAPPED_BYTES_MAX, PLAIN_BYTES_MAX + SMALL_BYTES_MAX),
    "/triptych.v1.FleetService/RegisterWorker": Bound(WORKER_BYTES_MAX, WORKER_BYTES_MAX),
    "/triptych.v1.FleetService/CompletePhase": Bound(WORKER_BYTES_MAX, WORKER_BYTES_MAX),
    "/triptych.v1.FleetService/Heartbeat": Bound(REPORT_BYTES_MAX, SMALL_BYTES_MAX),
}
"""Methods that take more than `Bound()`."""


def check(method: str, data: bytes, descriptor: Descriptor | None) -> None:
    """Raise InvalidRequest for a message that is larger than its method takes. It needn't be well-formed."""
    bound = BOUNDS.get(method, Bound())
    if len(data) > bound.whole:
        raise InvalidRequest("request", f"{len(data)} bytes", f"at most {bound.whole} bytes")
    if len(data) <= bound.plain:
        return
    plain = len(data) - (_blob_bytes(memoryview(data), descriptor) if descriptor is not None else 0)
    if plain > bound.plain:
        raise InvalidRequest("request", f"{plain} bytes without its files", f"at most {bound.plain} bytes")


def descriptor_of(parse: Any) -> Descriptor | None:
    """Of the messages that a generated `FromString` makes; None for other parsers."""
    found = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)
    return found if isinstance(found, Descriptor) else None


def _blob_bytes(data: memoryview, descriptor: Descriptor) -> int:
    """Bytes of all blobs, found along the fields that hold some at whatever depth."""
    total, count, parts = 0, 0, [(0, len(data), descriptor)]
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
        raise InvalidRequest("request", f"{len(data)} bytes", "a message of the method's type") from error
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
    seen, left = {descriptor.full_name}, [descriptor]
    while left:
        for field in left.pop().fields:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return True
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                left.append(inner)
    return False
