"""Sizes as people write them."""

from __future__ import annotations

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(size_bytes: float) -> str:
    """A size, for example `1.5 GiB`."""
    for unit in _BYTE_UNITS[:-1]:
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} {_BYTE_UNITS[-1]}"
