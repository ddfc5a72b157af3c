"""Export of the trials of a study as one table, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.search.trial import Trial
from synaptune.study.cells import MISSING, encode_column, protect_formula
from synaptune.study.database import keys as schema

ColumnValues = list[Any]

_FIRST_COLUMNS = (
    "number",
    schema.PHASE,
    schema.INDEX,
    schema.GENERATION,
    "state",
    "objective",
    schema.ESTIMATE,
    schema.SEED,
    schema.SECONDS,
)
_LAST_COLUMNS = (schema.ATTEMPTS, schema.REASON)
_PREFIX = "parameter."  # of a parameter with the name of an attribute
_NON_FINITE = ("nan", "inf", "-inf")  # stored form of numbers that JSON does not have


def tabulate_trials(trials: Sequence[Trial]) -> dict[str, ColumnValues]:
    """Return the columns of the table by name, one entry for each trial; None for a missing value.

    The order is: the attributes of every trial; the parameters in the order of their space, as
    cells.py writes them; attempts (a count) and reason; all other facts (metrics, fingerprints,
    versions) sorted by name. A parameter or metric with the name of another column gets the prefix
    `parameter.` or `metric.`.
    """
    table: dict[str, ColumnValues] = {
        name: _unify_type(
            [
                getattr(trial, name) if hasattr(trial, name) else trial.facts.get(name)
                for trial in trials
            ]
        )
        for name in _FIRST_COLUMNS
    }
    for name in dict.fromkeys(name for trial in trials for name in trial.values):
        table[_add_prefix(name)] = encode_column(
            [trial.values.get(name, MISSING) for trial in trials]
        )
    table[schema.ATTEMPTS] = [len(trial.facts.get(schema.ATTEMPTS, ())) for trial in trials]
    table[schema.REASON] = [trial.reason for trial in trials]
    known = {*_FIRST_COLUMNS, *_LAST_COLUMNS, schema.TRACEBACK}
    for name in sorted({name for trial in trials for name in trial.facts} - known):
        column = name
        while column in table:
            column = f"metric.{column}"
        table[column] = _unify_type([trial.facts.get(name) for trial in trials])
    return table


def is_export(columns: Collection[str]) -> bool:
    """Return whether a table has the columns of `tabulate_trials`."""
    return {"number", schema.PHASE, schema.INDEX, schema.GENERATION} <= set(columns)


def find_parameters(columns: Sequence[str]) -> dict[str, str] | None:
    """Return the parameters of a table of `tabulate_trials`: their names by column.

    They are the columns between two others. The result is None if those are not there.
    """
    names = list(columns)
    if not (is_export(names) and {schema.SECONDS, schema.ATTEMPTS} <= set(names)):
        return None
    inside = names[names.index(schema.SECONDS) + 1 : names.index(schema.ATTEMPTS)]
    return {
        name: (rest if _add_prefix(rest := name.removeprefix(_PREFIX)) == name else name)
        for name in inside
    }


def _add_prefix(name: str) -> str:
    """Return the column of a parameter. A name that begins like a prefixed one gets it as well."""
    plain = name
    while plain.startswith(_PREFIX):
        plain = plain.removeprefix(_PREFIX)
    return _PREFIX + name if plain in (*_FIRST_COLUMNS, *_LAST_COLUMNS) else name


def _unify_type(column: ColumnValues) -> ColumnValues:
    """Convert a column of facts to the narrowest common type: bool, int, float or text.

    In a text column other values become JSON.
    """
    present = [entry for entry in column if entry is not None]
    types = set(map(type, present))
    if types in (set(), {bool}, {int}):
        return column
    if all(_is_number(entry) for entry in present):
        return [None if entry is None else float(entry) for entry in column]
    return [
        entry if entry is None or isinstance(entry, str) else json.dumps(entry) for entry in column
    ]


def _is_number(entry: Any) -> bool:
    return (
        entry in _NON_FINITE
        if isinstance(entry, str)
        else isinstance(entry, int | float) and not isinstance(entry, bool)
    )


def to_csv(table: dict[str, ColumnValues]) -> str:
    """Return CSV with a header line. None becomes empty, and numbers keep all digits."""
    return "".join(map(_format_row, (table, *zip(*table.values(), strict=True))))


def _format_row(cells: Iterable[Any]) -> str:
    line = io.StringIO(newline="")
    # The writer quotes a cell with \r only if its line end has one.
    csv.writer(line, lineterminator="\r\n").writerow(map(protect_formula, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def to_parquet(table: dict[str, ColumnValues]) -> bytes:
    """Return Parquet; raises UserError if pyarrow is not installed."""
    pyarrow, parquet = _import_pyarrow("--format parquet", "use --format csv")
    # Empty columns get the type of filled ones, so that tables of several studies can be joined.
    types = dict.fromkeys(("objective", schema.ESTIMATE, schema.SECONDS), pyarrow.float64()) | {
        schema.REASON: pyarrow.string()
    }
    arrays = {name: pyarrow.array(column, type=types.get(name)) for name, column in table.items()}
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), sink)
    return sink.getvalue()


def read_parquet(path: Path) -> dict[str, ColumnValues]:
    """Read the columns of a Parquet file; raises UserError if it cannot be read."""
    pyarrow, parquet = _import_pyarrow(str(path), "export it as CSV")
    try:
        return parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise user_error(
            got=f"{path}: {get_first_line(error)}", expected="a Parquet file", do="export it again"
        ) from error


def _import_pyarrow(what: str, instead: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise user_error(
            got=f"{what} without pyarrow",
            expected="the package pyarrow",
            do=f"pip install pyarrow, or {instead}",
        ) from None
    return pyarrow, pyarrow.parquet
