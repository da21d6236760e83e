"""Bytes of a quantized weight, by the layout of the library that quantizes it.

diffusers quantizes the weights of linear layers (`torch.nn.Linear`) and nothing else: no biases, convolutions, norms or
embeddings, and none of the modules that a model keeps in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from triptych.errors import InvalidRequest
from triptych.roles import ROLE_NAMES

_NF4_BLOCK = 64
"""Values that share a scale in bitsandbytes' 4-bit weights: `Params4bit`'s default `blocksize`."""
_INT4_GROUP = 128
"""Values that share a scale and a zero point in torchao's int4 weights: `Int4WeightOnlyConfig`'s default."""


class Kind(NamedTuple):
    """One way of quantizing."""

    config: str
    """diffusers' configuration for it."""
    weight_bytes: Callable[[int, int, int], int]
    """From the rows (outputs) and columns (inputs) of a linear layer, and the bytes of one element of its dtype."""


KINDS: Mapping[str, Kind] = {
    "int8": Kind("TorchAoConfig(Int8WeightOnlyConfig())", lambda rows, columns, item: rows * columns + rows * item),
    "float8": Kind("TorchAoConfig(Float8WeightOnlyConfig())", lambda rows, columns, item: rows * columns + rows * 4),
    "int4": Kind(
        "TorchAoConfig(Int4WeightOnlyConfig())",
        lambda rows, columns, item: rows * (_up(columns, 2) + _up(columns, _INT4_GROUP) * 2 * item),
    ),
    "llm-int8": Kind("BitsAndBytesConfig(load_in_8bit=True)", lambda rows, columns, item: rows * columns + rows * 4),
    "nf4": Kind(
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")',
        lambda rows, columns, item: _up(rows * columns, 2) + _up(rows * columns, _NF4_BLOCK) * 4,
    ),
}
"""What `--quantize` takes."""


def parse(texts: list[str]) -> dict[str, Kind]:
    """`ROLE=KIND` by role. Raises InvalidRequest for another role or kind."""
    chosen: dict[str, Kind] = {}
    for text in texts:
        role, _, kind = text.partition("=")
        if role not in ROLE_NAMES or kind not in KINDS:
            accepted = f"ROLE=KIND, with a role of {', '.join(ROLE_NAMES)} and a kind of {', '.join(KINDS)}"
            raise InvalidRequest("quantize", text, accepted)
        chosen[role] = KINDS[kind]
    return chosen


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)
