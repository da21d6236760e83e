"""Tables: straight columns on a terminal, whole lines with tabs in a pipe.

In a pipe a row is one line, with tabs between its cells, all of them. Where several tables are shown, each line begins
with its table's key. What a terminal gets is drawn by `triptych_client.drawing`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from triptych_client.terminal import visible

Cell = str | tuple[str, ...]
"""Text in one line, or lines."""


@dataclass(frozen=True)
class Table:
    """Rows under names of columns. A table whose columns have no names is shown without a title."""

    key: str
    """What the rows are, in one word."""
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    """What a terminal shows above it; the key where there is none."""
    prose: Sequence[str] = ()
    """Columns that may wrap."""
    minor: Sequence[str] = ()
    """Columns that a narrow terminal does without, the first first."""


@dataclass(frozen=True)
class Headline:
    """One line, in parts."""

    key: str
    parts: Sequence[str]
    style: str = "bold"


Block = Table | Headline
View = Sequence[Block]


def show_line(*cells: str) -> None:
    """Print a line of a few words, now and not with the next ones."""
    print(" ".join(map(visible, cells)), flush=True)


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def lines(blocks: View) -> Iterable[str]:
    """The blocks as a pipe gets them."""
    has_key = len(blocks) > 1
    for block in blocks:
        for row in block.rows if isinstance(block, Table) else [block.parts]:
            cells = [visible("; ".join(cell) if isinstance(cell, tuple) else cell) for cell in row]
            yield "\t".join([block.key, *cells] if has_key else cells)
