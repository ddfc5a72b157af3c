"""Tables as plain values with units, which the page, the Markdown, the CSV and a terminal show."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from synaptune.core.text import format_choices, format_duration, format_parameter
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value, find_choice

CellKind = Literal[
    "text", "name", "count", "value", "loss", "share", "p", "seconds", "gain", "range", "position"
]
LEFT_ALIGNED = ("text", "name", "range")
UNKNOWN = "\N{EN DASH}"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: heading without the unit.
        kind: content of a cell. A `gain` is a Comparison and a `range` a Dimension, each of which
            takes several columns of a CSV file; a `position` is a number in [0, 1]; the others are
            texts or numbers. Every cell may be None.
        unit: unit of the values; empty without one.
    """

    name: str
    kind: CellKind = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        """Name with the unit; a duration is shown with a unit of its own."""
        return f"{self.name} [{self.unit}]" if self.unit and self.kind != "seconds" else self.name


class Table(NamedTuple):
    """A table.

    Attributes:
        key: name of its file and its HTML id.
        title: heading.
        columns: columns.
        rows: rows, with a cell for each column.
        note: text below the table; empty without one.
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def make_table(
    key: str, title: str, cells: Mapping[Column, Sequence[Any]], note: str = ""
) -> Table:
    """Make a table from the cells of each column."""
    return Table(key, title, list(cells), list(map(list, zip(*cells.values(), strict=True))), note)


def format_cell(cell: Any, kind: CellKind) -> str:
    """Format a cell for a reader."""
    if cell is None:
        return UNKNOWN
    match kind:
        case "gain":
            return f"{cell.mean:z.1f} ({cell.low:z.1f} to {cell.high:z.1f})"
        case "range":
            return describe_range(cell)
        case "loss":
            return f"{cell:.6g}"
        case "share" | "position":
            return f"{cell:z.2f}"
        case "p":
            return "< 0.001" if cell < 0.001 else f"{cell:.2g}"
        case "seconds":
            return format_duration(cell)
        case "value":
            return format_parameter(cell)
    return str(cell)


def show_value(value: Value, dimension: Dimension | None = None) -> Any:
    """Return the cell of a parameter's value: its text where the value alone would be unclear.

    These are None, which is an empty cell otherwise, and choices that would read like another one.
    """
    index = None if dimension is None else find_choice(dimension.choices, value)
    if dimension is None or index is None:
        return "None" if value is None else value
    text = format_choices(dimension.choices)[index]
    return text if value is None or text != format_parameter(value) else value


def describe_range(dimension: Dimension) -> str:
    """Describe a range: `0.1 to 2, log`, `a, b` or `a (75 %), b (25 %)`."""
    if dimension.scale != "categorical":
        scale = "" if dimension.scale == "lin" else f", {dimension.scale}"
        integer = ", integer" if dimension.integer else ""
        return f"{dimension.low:g} to {dimension.high:g}{scale}{integer}"
    total = sum(dimension.weights)
    shares = [f" ({format_percent(weight / total, 0)})" for weight in dimension.weights]
    choices = format_choices(dimension.choices)
    return ", ".join(map("".join, zip(choices, shares, strict=True)) if shares else choices)


def format_percent(share: float, places: int = 1) -> str:
    """Format a share in per cent: `31.6 %`."""
    return f"{100.0 * share:.{places}f} %"


def format_csv(table: Table) -> str:
    """Format a CSV file.

    The header names the units. Numbers keep every digit, and None is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([heading for column in table.columns for heading in _list_headings(column)])
    writer.writerows(_split_row(row, table) for row in table.rows)
    return text.getvalue()


def to_records(table: Table) -> list[dict[str, Any]]:
    """Return the rows as plain values by the headings of a CSV file, for JSON."""
    names = [heading for column in table.columns for heading in _list_headings(column)]
    return [dict(zip(names, _split_row(row, table), strict=True)) for row in table.rows]


def _list_headings(column: Column) -> list[str]:
    unit = f" [{column.unit}]" if column.unit else ""
    if column.kind == "gain":
        return [
            *(f"{column.name} {part}{unit}" for part in ("mean", "low", "high")),
            f"{column.name} pairs",
        ]
    return ["scale", "low", "high", "choices"] if column.kind == "range" else [column.name + unit]


def _split_row(row: Sequence[Any], table: Table) -> list[Any]:
    cells = zip(row, table.columns, strict=True)
    return [part for cell, column in cells for part in _split_cell(cell, column.kind)]


def _split_cell(cell: Any, kind: CellKind) -> list[Any]:
    if kind not in ("gain", "range"):
        return [cell]
    if cell is None:
        return [None] * 4
    if kind == "gain":
        return [cell.mean, cell.low, cell.high, cell.count]
    if cell.scale == "categorical":
        return [cell.scale, None, None, " | ".join(map(str, cell.choices))]
    return [cell.scale + (" int" if cell.integer else ""), cell.low, cell.high, None]


def format_key(key: str) -> str:
    """Format a key as a heading: `data_fingerprint` becomes `Data fingerprint`."""
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def format_plain(entry: Any) -> str:
    """Format an entry of the provenance in one line."""
    if isinstance(entry, Mapping):
        return ", ".join(f"{key}: {format_plain(part)}" for key, part in entry.items())
    if isinstance(entry, str) or not isinstance(entry, Sequence):
        return str(entry)
    return ", ".join(format_plain(part) for part in entry)
