"""Tables on terminals of any width: nothing is cut off, what does not fit side by side follows below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 2
"""Blanks that a column takes beside its text."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its title.
        right: numbers stand at the right.
        dim: the title is of something that is not there.
        most: characters after which its texts go on in the next line; None for no limit.
    """

    head: str
    right: bool = True
    dim: bool = False
    most: int | None = None


def show_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Text]],
    *,
    keys: int = 1,
    styles: Sequence[str] = (),
    sections: Sequence[int] = (),
) -> None:
    """Print a table, in parts of whole columns where the console is too narrow for all of them.

    Args:
        columns: of all cells.
        rows: cells; a row may end early.
        keys: columns at the left that every part begins with.
        styles: style of each row; none when empty.
        sections: numbers of rows that a line stands before.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    for part in _parts(columns, cells, console.width, keys):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for number in part:
            column = columns[number]
            table.add_column(
                column.head,
                justify="right" if column.right else "left",
                overflow="fold",
                header_style="dim" if column.dim else "bold",
                max_width=column.most,
            )
        for number, row in enumerate(cells):
            if number in sections:
                table.add_section()
            table.add_row(
                *(row[place] if place < len(row) else "" for place in part), style=styles[number] if styles else ""
            )
        console.print(table)


def _parts(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, keys: int) -> list[list[int]]:
    """Numbers of the columns of each part."""
    wide = []
    for number, column in enumerate(columns):
        longest = max(len(column.head), *(row[number].cell_len for row in rows if number < len(row)), 0)
        wide.append(GAP + min(longest, column.most or longest))
    first = list(range(keys))
    room = width - sum(wide[:keys]) - 1
    parts: list[list[int]] = [[*first]]
    left = room
    for number in range(keys, len(columns)):
        if wide[number] > left and len(parts[-1]) > keys:
            parts.append([*first])
            left = room
        parts[-1].append(number)
        left -= wide[number]
    return parts
