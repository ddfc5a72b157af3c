"""Printing of tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from synaptune.core.text import make_labels
from synaptune.report.table_model import LEFT_ALIGNED, Table, format_cell


def print_table(table: Table, console: Console) -> None:
    """Print a table with its title and its note.

    In a file or a pipe the table has no frame, and each row is one line with whole names. On a
    terminal it has a frame and whole names if it fits, else short names, else no frame either.
    """
    if console.is_terminal:
        layouts = ((True, False), (True, True), (False, True))
        grids = [_make_grid(table, framed, short) for framed, short in layouts]
        fitting = (grid for grid in grids if _measure_grid(grid, console) <= console.width)
        console.print(next(fitting, grids[-1]))
        if table.note:
            console.print(table.note, highlight=False, markup=False)
        return
    grid = _make_grid(table, framed=False, short=False)
    grid.title, grid.width = None, _measure_grid(grid, console)
    with console.capture() as text:
        console.print(grid, crop=False)
    lines = [line.rstrip() for line in text.get().splitlines()]
    note = [table.note] if table.note else []
    print_lines([*([table.title] if table.title else []), *lines, *note], console)


def _make_grid(table: Table, framed: bool, short: bool) -> Grid:
    """Make the grid of a table; `short` shortens names and sets units on a line of their own."""
    grid = Grid(
        title=escape(table.title) or None,
        title_justify="left",
        box=HEAVY_HEAD if framed else None,
        padding=(0, 1) if framed or not short else (0, 1, 0, 0),
        pad_edge=framed,
    )
    texts: list[list[str]] = []
    for index, column in enumerate(table.columns):
        cells = [format_cell(row[index], column.kind) for row in table.rows]
        if short and column.kind == "name":
            labels = make_labels(cells)
            cells = [labels[name] for name in cells]
        texts.append(cells)
        heading = column.heading.replace(" [", "\n[") if short else column.heading
        justify = "left" if column.kind in LEFT_ALIGNED else "right"
        grid.add_column(escape(heading), justify=justify, overflow="fold")
    for row in zip(*texts, strict=True):
        grid.add_row(*map(escape, row))
    return grid


def _measure_grid(grid: Grid, console: Console) -> int:
    """Measure the width of a grid whose cells are not broken."""
    return console.measure(grid, options=console.options.update(max_width=10_000)).maximum


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines unchanged: without markup, highlighting and line breaks."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
