"""Fields without which a call means nothing, as the protos mark them: asked before a servicer sees the message.

A client that writes a field under another number or name sends an empty one, since unknown fields are dropped. It is
told so, and not that there is no job called ''. What needs more than to be there is checked where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from triptych.errors import InvalidRequest
from triptych.v1 import rules_pb2


@functools.cache
def required_fields(descriptor: Descriptor) -> Sequence[FieldDescriptor]:
    """The fields of a message that must be set."""
    return [field for field in descriptor.fields if field.GetOptions().Extensions[rules_pb2.required]]


def check(message: Any, descriptor: Descriptor, within: str = "") -> None:
    """Raise InvalidRequest for the first field of a request that must be set and isn't."""
    for field in required_fields(descriptor):
        value = "" if field.has_presence else getattr(message, field.name)
        if not (message.HasField(field.name) if field.has_presence else value != field.default_value):
            raise InvalidRequest(within + field.name, value, f"a value: {descriptor.name} needs it, and it isn't set")
        if field.message_type is not None:
            check(getattr(message, field.name), field.message_type, f"{within}{field.name}.")
