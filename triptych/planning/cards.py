"""Cards by name or memory, as a command line gives them: `80,80,24` or `h100:8`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from triptych.errors import InvalidRequest

GB = 1_000_000_000
MEMORY_GB: Mapping[str, float] = {
    "t4": 16,
    "v100": 32,
    "a10": 24,
    "l4": 24,
    "l40": 48,
    "l40s": 48,
    "a40": 48,
    "a100-40": 40,
    "a100": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
    "rtx3090": 24,
    "rtx4090": 24,
    "rtx5090": 32,
    "rtx6000ada": 48,
    "mi300x": 192,
}
"""Memory that the vendors' data sheets give, in GB. A card reports a little more than so many 10^9 bytes."""
CARDS_MAX = 4096
"""Cards in one plan: more than stand in one hall."""
MEMORY_GB_MAX = 10_000.0
_ACCEPTED = f"memory in GB, or a name ({', '.join(MEMORY_GB)}), each with :COUNT for several, divided by commas"


class Card(NamedTuple):
    """One card."""

    name: str
    """As it was given."""
    memory_bytes: int


def parse(text: str) -> list[Card]:
    """The cards that `text` lists. Raises InvalidRequest for a name or number that isn't a card."""
    cards: list[Card] = []
    for part in text.split(","):
        name, _, count_text = part.strip().lower().partition(":")
        count = int(count_text) if re.fullmatch(r"[0-9]{1,4}", count_text) else 0 if ":" in part else 1
        memory_gb = MEMORY_GB.get(name) or _number(name)
        if not 0 < memory_gb <= MEMORY_GB_MAX or not 0 < count <= CARDS_MAX - len(cards):
            raise InvalidRequest("gpus", text, f"{_ACCEPTED}; {CARDS_MAX} cards at most")
        cards += [Card(name, round(memory_gb * GB))] * count
    return cards


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
