"""Draws tables for a terminal, as wide as it is.

No word is broken while a line has room for it: columns of prose wrap at spaces. Where the terminal is too narrow the
columns that matter least are left out, which is said; where that isn't enough, each row becomes a paragraph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from triptych_client.tables import Cell, Table, View
from triptych_client.terminal import spelled

GAP = 2
"""Spaces between two columns."""
WORD_CHARS_MAX = 30
"""A longer word of prose (a default of many numbers, a URL) may be broken: it mustn't decide about the whole table."""
PROSE_CHARS_MIN = 16
"""A column of prose that is narrower is hard to read."""
STYLES = {
    **dict.fromkeys(("succeeded", "ok"), "green"),
    **dict.fromkeys(("failed", "problem", "quarantined"), "red"),
    **dict.fromkeys(("cancelled", "expired", "absent"), "yellow"),
}
"""By the whole content of a cell."""

Rows = list[list[list[str]]]
"""Lines of each cell of each row."""


class Drawing:
    """Blocks one below the other; drawn again for each width."""

    def __init__(self, blocks: View) -> None:
        self._blocks = blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for block in self._blocks:
            if isinstance(block, Table):
                yield from _table(block, console.encoding, options.max_width)
            else:
                yield Text(" · ".join(spelled(part, console.encoding) for part in block.parts), block.style)


def _table(table: Table, encoding: str, width: int) -> Iterator[RenderableType]:
    columns = list(table.columns)
    rows = [[_lines(cell, encoding) for cell in row] for row in table.rows]
    left_out = []
    while not (widths := _widths(columns, rows, table.prose, width)):
        minor = next((name for name in table.minor if name in columns), None)
        if minor is None:
            break
        left_out.append(minor)
        rows = [[cell for name, cell in zip(columns, row, strict=True) if name != minor] for row in rows]
        columns.remove(minor)
    if any(columns):
        yield Text(spelled(table.title or table.key, encoding), "italic")
    if widths:
        yield _columns(columns, rows, widths)
    else:
        yield from _paragraphs(columns, rows)
    if left_out:
        yield Text(f"left out, for want of width: {', '.join(left_out)}", "dim")


def _lines(cell: Cell, encoding: str) -> list[str]:
    return [spelled(line, encoding) for line in (cell if isinstance(cell, tuple) else (cell,))]


def _widths(columns: Sequence[str], rows: Rows, prose: Sequence[str], width: int) -> list[int]:
    """A width for each column; none where words would have to be broken."""
    most = []
    least = []
    for index, name in enumerate(columns):
        texts = [name, *(line for row in rows for line in row[index])]
        most.append(max(map(cell_len, texts)))
        words = [word for text in texts for word in text.split()]
        longest = min(max(map(cell_len, words), default=0), WORD_CHARS_MAX)
        needed = max(longest, cell_len(name), PROSE_CHARS_MIN)
        least.append(min(most[-1], needed) if name in prose else most[-1])
    room = width - GAP * (len(columns) - 1) - sum(least)
    if room < 0:
        return []
    widths = list(least)
    for index in sorted(range(len(columns)), key=lambda index: most[index]):  # short ones first: they take little
        wanting = sum(most[other] > widths[other] for other in range(len(columns)))
        more = min(most[index] - widths[index], room // max(wanting, 1))
        widths[index] += more
        room -= more
    return widths


def _columns(columns: Sequence[str], rows: Rows, widths: Sequence[int]) -> RenderableType:
    drawn = RichTable(
        box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim", show_header=any(columns), expand=False
    )
    for name, width in zip(columns, widths, strict=True):
        drawn.add_column(Text(name), width=width, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text("\n".join(cell), STYLES.get("\n".join(cell), "")) for cell in row))
    return drawn


def _paragraphs(columns: Sequence[str], rows: Rows) -> Iterator[RenderableType]:
    for row in rows:
        pairs = [
            f"{name} {' / '.join(cell)}".strip() for name, cell in zip(columns[1:], row[1:], strict=True) if any(cell)
        ]
        yield Text("\n".join(row[0]), "bold", overflow="fold")
        yield Padding(Text(" · ".join(pairs) if pairs else "", overflow="fold"), (0, 0, 0, 2))
