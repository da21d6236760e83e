"""Tells a block's refusal of the caller's values from a bug.

The rule: a `ValueError` or `TypeError` is a refusal where the innermost frame of its traceback stands on a `raise`
statement of diffusers' own code outside its models. An error that an operation ran into by itself (`None + 1`, a
shape that doesn't fit) or that torch raised stays what it is. An `UnboundLocalError` in a block is a refusal, too: it
means that diffusers has no branch for this combination of inputs. The whole pipeline would fail alike, so trying again
doesn't help.
"""

from __future__ import annotations

import dis
from collections.abc import Mapping
from types import TracebackType

from triptych.errors import InvalidRequest
from triptych.privacy import redact, texts_in

_RAISE = dis.opmap["RAISE_VARARGS"]


def is_refusal(error: Exception) -> bool:
    """Whether a block said on purpose that a value can't be used."""
    if not isinstance(error, (ValueError, TypeError, UnboundLocalError)) or error.__traceback__ is None:
        return False
    innermost = _innermost(error.__traceback__)
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    if not module.startswith("diffusers.") or module.startswith("diffusers.models."):
        return False
    if isinstance(error, UnboundLocalError):
        return module.startswith("diffusers.modular_pipelines.")
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == _RAISE


def as_invalid_request(error: Exception, values: Mapping[str, object]) -> InvalidRequest:
    """The refusal in our words: the input that the sentence names first, its value unless it is text, the sentence.

    Texts of the caller that the sentence quotes are cut out, because it goes into logs and the job's record.
    """
    sentence = redact(" ".join(str(error).split()), texts_in(values))
    if isinstance(error, UnboundLocalError):
        return InvalidRequest("request", "a combination of inputs", f"one that diffusers covers ({sentence})")
    positions = {name: sentence.find(name) for name in values if name in sentence}
    said = str(error)
    texts = {name: value for name, value in values.items() if isinstance(value, str) and "prompt" not in name}
    quoted = next((name for name, value in texts.items() if value and value in said), "request")
    field = min(positions, key=lambda name: (positions[name], -len(name)), default=quoted)
    value = values.get(field, "a combination of inputs")
    is_public = field == "request" or isinstance(value, (bool, int, float, type(None)))
    shown = value if is_public else type(value).__name__
    return InvalidRequest(field, shown, f"what the pipeline takes; it says: {sentence}")


def _innermost(traceback: TracebackType) -> TracebackType:
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback
