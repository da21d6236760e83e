"""The settings of a text-encoder process. They are read as all others are: see `config`."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.config import BYTES_MAX, ModelConfig, number


@dataclass(frozen=True)
class TextEncoderConfig(ModelConfig):
    """Settings of a process that runs text encoders for many encoders."""

    embeddings_bytes_max: int = number(
        2**28, "bytes of embeddings that are kept for equal calls, within the arena; 0 keeps none", 0, BYTES_MAX
    )
