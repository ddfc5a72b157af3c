"""Export of the trials of a study as one table, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.trial import Trial
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
_NON_FINITE = ("nan", "inf", "-inf")  # stored form of numbers that JSON does not have


def tabulate_trials(trials: Sequence[Trial]) -> dict[str, ColumnValues]:
    """Return the columns of the table by name, one entry for each trial; None for a missing value.

    The order is: the attributes of every trial; the parameters in the order of their space;
    attempts (a count) and reason; all other facts (metrics, fingerprints, versions) sorted by name.
    A parameter or metric with the name of an earlier column gets the prefix `parameter.` or
    `metric.`.
    """
    table: dict[str, ColumnValues] = {
        name: [
            getattr(trial, name) if hasattr(trial, name) else trial.facts.get(name)
            for trial in trials
        ]
        for name in _FIRST_COLUMNS
    }
    for name in dict.fromkeys(name for trial in trials for name in trial.values):
        table[name if name not in (*_FIRST_COLUMNS, *_LAST_COLUMNS) else f"parameter.{name}"] = [
            trial.values.get(name) for trial in trials
        ]
    table[schema.ATTEMPTS] = [len(trial.facts.get(schema.ATTEMPTS, ())) for trial in trials]
    table[schema.REASON] = [trial.reason for trial in trials]
    known = {*_FIRST_COLUMNS, *_LAST_COLUMNS, schema.TRACEBACK}
    for name in sorted({name for trial in trials for name in trial.facts} - known):
        table[name if name not in table else f"metric.{name}"] = [
            trial.facts.get(name) for trial in trials
        ]
    return {name: _unify_type(column) for name, column in table.items()}


def _unify_type(column: ColumnValues) -> ColumnValues:
    """Convert a column to the narrowest common type: bool, int, float or text.

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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue()


def to_parquet(table: dict[str, ColumnValues]) -> bytes:
    """Return Parquet; raises UserError if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise user_error(
            got="--format parquet without pyarrow",
            expected="the package pyarrow",
            do="pip install pyarrow, or use --format csv",
        ) from None
    # Empty columns get the type of filled ones, so that tables of several studies can be joined.
    types = dict.fromkeys(("objective", schema.ESTIMATE, schema.SECONDS), pyarrow.float64()) | {
        schema.REASON: pyarrow.string()
    }
    arrays = {name: pyarrow.array(column, type=types.get(name)) for name, column in table.items()}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), sink)
    return sink.getvalue()
