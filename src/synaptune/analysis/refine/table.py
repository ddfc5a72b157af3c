"""Read runs from a CSV file with one line for each run.

Such a file is exported by Weights & Biases or by `synaptune export`. It does not separate settings
from measurements. A column is therefore a parameter only if both its name and its values are
plausible. The columns that are left out are reported; `--parameters` or `--rename` include them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synaptune.analysis.refine.runs import (
    EVALUATION_WORDS,
    OBJECTIVE,
    TRAINING_WORDS,
    RunParameter,
    RunSelection,
    RunTable,
    check_metric,
    is_evaluation_metric,
    parse_number,
    refuse_unknown_parameters,
    rename_parameters,
    round_to_digits,
    split_words,
)
from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension
from synaptune.study.database import keys as schema
from synaptune.study.reader import SEARCH, is_search

MAX_CHOICES = 6  # a column with more distinct numbers is a range, not a list of choices
MAX_TEXTS = 12  # a column with more distinct texts is not a parameter
_LOG_RATIO = 10.0  # a column whose ends have at least this ratio gets a log scale
_METRIC_WORDS = (
    TRAINING_WORDS
    | EVALUATION_WORDS
    | split_words(
        "loss perplexity ppl accuracy acc reward score metric grad gradient return f1 auc change"
    )
)
_RUN_COLUMNS = split_words(
    "name state notes user tags created updated runtime sweep id run group host hostname os commit "
    "github url path entity project agent heartbeat number index phase generation attempts reason "
    "estimate seconds device step epoch duration timestamp date time seed"
) | {
    "job type",
    "run id",
    "end time",
    "start time",
    "python version",
    "cuda version",
    "gpu type",
    "gpu count",
    "cpu count",
    "global step",
}
# Columns of a table that `synaptune export` wrote.
_EXPORT_COLUMNS = {"number", schema.PHASE, schema.INDEX, schema.GENERATION}
_FINISHED_STATES = ("finished", "complete", "completed")


def read_csv_runs(path: Path, selection: RunSelection) -> RunTable:
    """Read the runs of a CSV file whose first line names the columns.

    Raises:
        UserError: the file cannot be read, or as `read_study_runs`.
    """
    table = _read_columns(path)
    metric = _choose_metric(table, selection.metric)
    finished, notes = _select_finished(table, metric)
    if not finished:
        raise user_error(
            got=f"{path} without a finished run that has {metric}",
            expected="numbers in that column",
            do="check --metric",
        )
    table = {name: [column[row] for row in finished] for name, column in table.items()}
    refuse_unknown_parameters(selection, list(table))
    parameters, left_out = _choose_parameters(table, metric, selection, path)
    if not (split_words(metric) & EVALUATION_WORDS) and metric != OBJECTIVE:
        notes.append(
            f"the name of {metric} does not identify it as an evaluation metric: ranking by a "
            "training metric favours overfitting"
        )
    if "test" in split_words(metric):
        notes.append(
            f"{metric} is measured on the test split, which can then not evaluate the refined "
            "search"
        )
    # Only an export of synaptune says which runs were drawn from the same distribution.
    generations = table["generation"] if set(table) >= _EXPORT_COLUMNS else ["0"] * len(finished)
    return RunTable(
        source=path.name,
        metric=metric,
        maximize=selection.maximize,
        parameters=rename_parameters(parameters, selection),
        scores=tuple(float(text) for text in table[metric]),
        strata=tuple(int(text or 0) for text in generations),
        adaptive="unknown optimizer" if len(set(generations)) > 1 else None,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _choose_parameters(
    table: Mapping[str, Sequence[str]], metric: str, selection: RunSelection, path: Path
) -> tuple[list[RunParameter], list[tuple[str, str]]]:
    """Return the columns that are parameters, and the others with the reason."""
    selected = {*(selection.parameters or ()), *(selection.new_names or ())}
    dotted = any(key.startswith("synapse.") for key in table)
    columns: dict[str, RunParameter | str] = {}
    for name, column in table.items():
        reason = None
        if name not in selected:
            reason = (
                _explain_no_parameter(name, dotted=dotted)
                if selection.parameters is None
                else "not among --parameters"
            )
        if name != metric:
            columns[name] = reason or _make_parameter(name, column, forced=name in selected)
    left_out = [(name, reason) for name, reason in columns.items() if isinstance(reason, str)]
    unusable = [f"{name}: {reason}" for name, reason in left_out if name in selected]
    if unusable:
        raise user_error(
            got=f"columns of {path} that cannot be parameters: {'; '.join(unusable)}",
            expected="columns that vary",
            do="leave them out",
        )
    return [entry for entry in columns.values() if isinstance(entry, RunParameter)], left_out


def _read_columns(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise user_error(
            got=f"{path}: {reason}",
            expected="a CSV file in UTF-8 with a line for each run",
            do="check the path",
        ) from error
    if len(rows) < 2:
        raise user_error(
            got=f"{path} with {len(rows)} lines",
            expected="a line of column names and a line for each run",
            do="export it again",
        )
    names, *lines = rows
    for number, line in enumerate(lines, 2):
        if len(line) != len(names):
            raise user_error(
                got=f"{path}: line {number} with {len(line)} cells under {len(names)} names",
                expected="as many cells in every line",
                do="export it again",
            )
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise user_error(
            got=f"{path} with several columns {', '.join(duplicates)}",
            expected="a different name for each column",
            do="rename them",
        )
    return {name: [row[index].strip() for row in lines] for index, name in enumerate(names)}


def _choose_metric(table: Mapping[str, Sequence[str]], metric: str | None) -> str:
    numeric = [
        name
        for name, column in table.items()
        if any(parse_number(text) is not None for text in column)
    ]
    if metric is not None:
        return check_metric(metric, numeric)
    candidates = [OBJECTIVE] if OBJECTIVE in numeric else _find_evaluation_metrics(numeric)
    if len(candidates) == 1:
        return candidates[0]
    names = f": {', '.join(candidates)}" if candidates else ""
    raise user_error(
        got=f"{len(candidates) or 'no'} columns that may be the metric to rank by{names}",
        expected="one evaluation metric",
        do="name it with --metric (and --maximize if more is better)",
    )


def _find_evaluation_metrics(names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if is_evaluation_metric(name) and "test" not in split_words(name) and "interval" not in name
    ]


def _select_finished(
    table: Mapping[str, Sequence[str]], metric: str
) -> tuple[list[int], list[str]]:
    """Return the rows of the finished search runs with the metric, and notes on the others."""
    # In an export of synaptune the last search phase counts; in other tables only a phase of that
    # name.
    phases = table.get("phase", ())
    searches = [
        phase
        for phase in dict.fromkeys(phases)
        if (is_search(phase) if set(table) >= _EXPORT_COLUMNS else phase == SEARCH)
    ]
    rows = [row for row in range(len(table[metric])) if not searches or phases[row] == searches[-1]]
    states = next((column for name, column in table.items() if name.lower() == "state"), ())
    finished = {row for row, state in enumerate(states) if state.lower() in _FINISHED_STATES}
    scored = {row for row, text in enumerate(table[metric]) if parse_number(text) is not None}
    notes = []
    for selected, problem in (
        (finished or set(rows), "that did not finish"),
        (scored, f"without a number for {metric}"),
    ):
        remaining = [row for row in rows if row in selected]
        if len(remaining) < len(rows):
            notes.append(f"{len(rows) - len(remaining)} runs {problem} are left out")
        rows = remaining
    return rows, notes


def _explain_no_parameter(name: str, *, dotted: bool) -> str | None:
    """Return why the name of a column excludes it as a parameter; None if it may be one.

    `dotted` says that the table has names of synaptune's configuration.
    """
    if name.startswith("_") or name.lower() in _RUN_COLUMNS or split_words(name) & {"seed"}:
        return "about the run"
    if dotted:
        is_setting = name.startswith(("synapse.", "training.", "model.", "data."))
        return None if is_setting else "not a name of the configuration"
    is_measurement = split_words(name) & _METRIC_WORDS and not name.startswith("training.")
    return "named like a measurement" if is_measurement else None


def _make_parameter(name: str, column: Sequence[str], *, forced: bool) -> RunParameter | str:
    """Make a parameter of a column, or return why it is not a parameter."""
    if missing := sum(not text for text in column):
        return f"empty in {missing} of the runs"
    values = _parse_values(column)
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return f"constant ({column[0]})"
    is_text = isinstance(values[0], str)
    if is_text and (len(distinct) > MAX_TEXTS or (len(distinct) == len(column) and not forced)):
        return f"{len(distinct)} different texts"
    if is_text or len(distinct) <= MAX_CHOICES:
        return RunParameter(Dimension(name, "categorical", choices=tuple(distinct)), values)
    return RunParameter(_make_range(name, distinct), values)


def _parse_values(column: Sequence[str]) -> tuple[Any, ...]:
    """Return the cells as integers, numbers or truth values if all of them are, else as texts."""
    if all(re.fullmatch(r"[+-]?\d+", text) for text in column):
        return tuple(int(text) for text in column)
    if all(parse_number(text) is not None for text in column):
        return tuple(float(text) for text in column)
    if {text.lower() for text in column} == {"true", "false"}:
        return tuple(text.lower() == "true" for text in column)
    return tuple(column)


def _make_range(name: str, distinct: Sequence[float]) -> Dimension:
    """Make the range of a column from its sorted values, rounded outward unless they are whole."""
    low, high = distinct[0], distinct[-1]
    log, integer = low > 0.0 and high / low >= _LOG_RATIO, isinstance(low, int)
    if not integer:
        digits = 1 if log else 2
        low, high = round_to_digits(low, digits, up=False), round_to_digits(high, digits, up=True)
    return Dimension(name, "log" if log else "lin", low, high, integer=integer)
