"""Printing of tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from synaptune.report.table_model import LEFT_ALIGNED, Table, format_cell


def print_table(table: Table, console: Console) -> None:
    """Print a table with its title and its note.

    In a file or a pipe the table has no frame, and each row is one line with whole names.
    """
    terminal = console.is_terminal
    title, box = escape(table.title), HEAVY_HEAD if terminal else None
    grid = Grid(title=title if terminal else None, title_justify="left", box=box, pad_edge=terminal)
    for column in table.columns:
        justify = "left" if column.kind in LEFT_ALIGNED else "right"
        grid.add_column(escape(column.heading), justify=justify, overflow="fold")
    for row in table.rows:
        cells = zip(row, table.columns, strict=True)
        texts = [(format_cell(cell, column.kind), column.kind) for cell, column in cells]
        # A long name breaks before its last part, so that the other columns keep their width.
        broken = [
            ".\n".join(text.rsplit(".", 1)) if terminal and kind == "name" else text
            for text, kind in texts
        ]
        grid.add_row(*map(escape, broken))
    note = [table.note] if table.note else []
    if terminal:
        console.print(grid)
        print_lines(note, console)
        return
    grid.width = console.measure(grid, options=console.options.update(max_width=10_000)).maximum
    with console.capture() as text:
        console.print(grid, crop=False)
    lines = [line.rstrip() for line in text.get().splitlines()]
    print_lines([*([table.title] if table.title else []), *lines, *note], console)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines unchanged: without markup, highlighting and line breaks."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
