"""Tables of a document, as tests compare them with what there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TELEMETRY = ROOT / "docs" / "telemetry.md"
TEXT_ENCODER = "text-encoder"
"""The process of which fleets without engines have none."""


def table(document: Path, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading, each by the names of its columns."""
    lines = iter(document.read_text().splitlines())
    while next(lines) != heading:
        pass
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line[1:].rstrip("|").split("|")])
        elif rows:
            break
    head, _rule, *body = rows
    return [dict(zip(head, row, strict=True)) for row in body]


def quoted(cell: str) -> tuple[str, ...]:
    """What stands between backquotes in a cell."""
    return tuple(re.findall(r"`([^`]+)`", cell))
