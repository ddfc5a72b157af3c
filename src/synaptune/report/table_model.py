"""A table as plain values with units: the page, the Markdown and the CSV files are three faces of
it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from synaptune.core.text import format_duration, format_parameter
from synaptune.search.space.space import Dimension

CellKind = Literal[
    "text", "name", "count", "value", "loss", "share", "p", "seconds", "gain", "range", "position"
]
LEFT_ALIGNED = ("text", "name", "range")
UNKNOWN = "\N{EN DASH}"


class Column(NamedTuple):
    """A column; unit: in its heading, empty without one.

    kind: how a cell is shown. `gain` holds a Comparison, `range` a Dimension (each several columns
    of the CSV), `position` a
    number in [0, 1]; the others a text or a number. Any cell may be null.
    """

    name: str
    kind: CellKind = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        """The name with its unit; times are shown with their own."""
        return f"{self.name} [{self.unit}]" if self.unit and self.kind != "seconds" else self.name


class Table(NamedTuple):
    """A table; note: a sentence under it, empty without one."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def format_cell(cell: Any, kind: CellKind) -> str:
    """A cell for people."""
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


def format_csv(table: Table) -> str:
    """CSV with a header line that names units; numbers keep every digit, null is empty."""
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
    """A key as a heading: `data_fingerprint` is `Data fingerprint`."""
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def format_plain(entry: Any) -> str:
    """A value of the provenance in one line."""
    if isinstance(entry, Mapping):
        return ", ".join(f"{key}: {format_plain(part)}" for key, part in entry.items())
    if isinstance(entry, str) or not isinstance(entry, Sequence):
        return str(entry)
    return ", ".join(format_plain(part) for part in entry)
