"""The rate of the sound that a pipeline takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from triptych.v1 import model_pb2

_CONFIG_RATES = ("sample_rate", "sampling_rate")
"""How the configurations of models call the rate of the sound that they read."""


def input_rate(pipeline: Any, component_names: Iterable[str]) -> int:
    """The rate in Hz that the encoder's components read; 0 where none says one, or two say different ones."""
    configs = [getattr(getattr(pipeline, name, None), "config", None) for name in component_names]
    own = [config for config in configs if isinstance(config, Mapping)]  # diffusers' models; others read no sound
    rates = {config[key] for config in own for key in _CONFIG_RATES if isinstance(config.get(key), int)}
    return int(rates.pop()) if len(rates) == 1 else 0


def add_rate(described: model_pb2.InputDescription, rate_hz: int) -> None:
    """Say the rate of an input that takes sound, also in an object's fields."""
    if model_pb2.INPUT_KIND_AUDIO in (described.kind, *described.item_kinds):
        described.sample_rate_hz = rate_hz
    for field in described.fields:
        add_rate(field, rate_hz)
