"""A table as plain values with units, from which the page, the Markdown and the CSV are made."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from synaptune.core.text import format_duration
from synaptune.search.space.space import Dimension

CellKind = Literal[
    "text", "name", "count", "value", "loss", "share", "p", "seconds", "gain", "range", "position"
]
UNKNOWN = "\N{EN DASH}"


class Column(NamedTuple):
    """A column of a table. Any cell may be None.

    Attributes:
        name: heading without the unit.
        kind: format of the cells. `gain` cells are a Comparison and `range` cells a Dimension, each
            of which is several columns of the CSV; `position` cells are numbers in [0, 1]; the
            other kinds are texts or numbers.
        unit: unit for the heading; empty without one.
    """

    name: str
    kind: CellKind = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        """The name with the unit, except for times, whose cells contain their own."""
        return f"{self.name} [{self.unit}]" if self.unit and self.kind != "seconds" else self.name


class Table(NamedTuple):
    """A table.

    Attributes:
        key: name of the CSV file, and anchor on the page.
        title: heading.
        columns: columns in their order.
        rows: cells by row.
        note: sentence below the table; empty without one.
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def format_cell(cell: Any, kind: CellKind) -> str:
    """Format a cell for display."""
    if cell is None:
        return UNKNOWN
    match kind:
        case "gain":
            return f"{cell.mean:.1f} ({cell.low:.1f} to {cell.high:.1f})"
        case "range":
            return cell.describe()
        case "loss":
            return f"{cell:.6g}"
        case "share" | "position":
            return f"{cell:.2f}"
        case "p":
            return "< 0.001" if cell < 0.001 else f"{cell:.3f}"
        case "seconds":
            return format_duration(cell)
        case "value":
            return format_parameter(cell)
    return str(cell)


def format_parameter(cell: Any) -> str:
    """Format the value of a parameter; a float gets four significant digits."""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def format_csv(table: Table) -> str:
    """Format a table as CSV: units in the header line, numbers with all digits, None as empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([heading for column in table.columns for heading in _csv_headings(column)])
    for row in table.rows:
        writer.writerow(
            [
                entry
                for column, cell in zip(table.columns, row, strict=True)
                for entry in _csv_cells(column, cell)
            ]
        )
    return text.getvalue()


def _csv_headings(column: Column) -> list[str]:
    unit = f" [{column.unit}]" if column.unit else ""
    if column.kind == "gain":
        return [f"{column.name} {part}{unit}" for part in ("mean", "low", "high")] + [
            f"{column.name} pairs"
        ]
    if column.kind == "range":
        return ["scale", "low", "high", "choices"]
    return [column.name + unit]


def _csv_cells(column: Column, cell: Any) -> list[Any]:
    if column.kind == "gain":
        return [None] * 4 if cell is None else [cell.mean, cell.low, cell.high, cell.count]
    if column.kind == "range":
        return [None] * 4 if cell is None else _csv_range(cell)
    return [cell]


def _csv_range(dimension: Dimension) -> list[Any]:
    scale = dimension.scale + (" int" if dimension.integer else "")
    if dimension.scale == "categorical":
        return [scale, None, None, " | ".join(str(choice) for choice in dimension.choices)]
    return [scale, dimension.low, dimension.high, None]


def format_key(key: str) -> str:
    """Format a key as a heading: `data_fingerprint` becomes `Data fingerprint`."""
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def format_plain(entry: Any) -> str:
    """Format a value of the provenance in one line."""
    if isinstance(entry, Mapping):
        return ", ".join(f"{key}: {format_plain(part)}" for key, part in entry.items())
    if isinstance(entry, str) or not isinstance(entry, Sequence):
        return str(entry)
    return ", ".join(format_plain(part) for part in entry)
