"""Requests that set just what they can't do without, for tests in which the values don't matter."""

from __future__ import annotations

from typing import Any, TypeVar

from triptych.rpc.requests import required_fields

Message = TypeVar("Message", bound=Any)
VALUES: dict[type, object] = {str: "x", bytes: b"x"}
"""By the type of a field's default; 1 for numbers."""


def filled(cls: type[Message]) -> Message:
    """A request whose required fields are set, to anything."""
    message = cls()
    _fill(message)
    return message


def _fill(message: Any) -> None:
    for field in required_fields(message.DESCRIPTOR):
        name = field.name
        if field.message_type is not None:
            getattr(message, name).SetInParent()
            _fill(getattr(message, name))
        else:
            setattr(message, name, VALUES.get(type(field.default_value), 1))
