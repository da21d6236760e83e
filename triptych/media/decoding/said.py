"""The promises of a file's headers."""

from __future__ import annotations

from typing import NamedTuple


class Said(NamedTuple):
    """What a file's headers promise. A size or count that they don't tell is 0."""

    width: int = 0
    height: int = 0
    frames: int = 1
    scans: int = 1
    samples: int = 0
    """Of sound, all channels together."""
