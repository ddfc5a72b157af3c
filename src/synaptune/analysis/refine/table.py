"""Runs from a table: any CSV file with a line for each run, such as an export of Weights & Biases or of `synaptune export`.

Nothing in such a table tells settings from measurements, so a column is taken for a parameter only when neither its name nor its
values speak against it; what is left out is said, and `--parameters` or `--rename` take a column all the same.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from synaptune.analysis.refine.runs import (
    EVALUATION_WORDS,
    OBJECTIVE,
    TRAINING_WORDS,
    RunParameter,
    RunSelection,
    RunTable,
    parse_number,
    refuse_training_metric,
    refuse_unknown_parameters,
    rename_parameters,
    round_to_digits,
    split_words,
    unknown_metric_error,
)
from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension, Value
from synaptune.study.database import keys as schema
from synaptune.study.reader import SEARCH, is_search

MAX_CHOICES = 6  # distinct numbers beyond which a column is a range, and not a list of choices
MAX_TEXTS = 12  # distinct texts beyond which a column names its runs
_LOG_RATIO = 10.0  # ratio of the ends of a column from which on it is searched on a log scale
_METRIC_WORDS = (
    TRAINING_WORDS
    | EVALUATION_WORDS
    | split_words(
        "loss perplexity ppl accuracy acc reward score metric grad gradient return f1 auc change"
    )
)
_RUN_COLUMNS = split_words(
    "name state notes user tags created updated runtime sweep id run group host hostname os commit github url path entity project agent "
    "heartbeat number index phase generation attempts reason estimate seconds device step epoch duration timestamp date time seed"
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
_EXPORT_COLUMNS = {
    "number",
    schema.PHASE,
    schema.INDEX,
    schema.GENERATION,
}  # columns of a table that `synaptune export` wrote
_FINISHED_STATES = ("finished", "complete", "completed")


def read_csv_runs(path: Path, selection: RunSelection) -> RunTable:
    """The runs of a CSV file: a line each, the columns named in the first; raises UserError as `of_study`, and for an unreadable file."""
    table = _read_columns(path)
    metric = _choose_metric(table, selection.metric)
    kept, notes = _select_finished(table, metric)
    if not kept:
        raise user_error(
            got=f"{path} without a finished run that has {metric}",
            expected="numbers in that column",
            do="check --metric",
        )
    table = {name: [column[row] for row in kept] for name, column in table.items()}
    sources = set(table) >= _EXPORT_COLUMNS
    refuse_unknown_parameters(selection, list(table))
    chosen = set(selection.parameters or ()) | set(selection.new_names or ())
    parameters, left_out = [], []
    for name, column in table.items():
        if name == metric:
            continue
        reason = (
            "not among --parameters"
            if selection.parameters is not None and name not in chosen
            else None
        )
        reason = reason or (
            None
            if name in chosen
            else _explain_no_parameter(
                name, dotted=any(key.startswith("synapse.") for key in table)
            )
        )
        made = reason or _make_parameter(name, column, forced=name in chosen)
        if isinstance(made, str):
            left_out.append((name, made))
        else:
            parameters.append(made)
    if missed := [f"{name}: {reason}" for name, reason in left_out if name in chosen]:
        raise user_error(
            got=f"columns of {path} that cannot be parameters: {'; '.join(missed)}",
            expected="columns that vary",
            do="leave them out",
        )
    if not (split_words(metric) & EVALUATION_WORDS) and metric != OBJECTIVE:
        notes.append(
            f"nothing in its name says that {metric} is an evaluation metric: a training metric would choose what overfits"
        )
    if "test" in split_words(metric):
        notes.append(
            f"{metric} is of the test split, which can then no longer judge what the refined search finds"
        )
    return RunTable(
        source=path.name,
        metric=metric,
        maximize=selection.maximize,
        parameters=rename_parameters(tuple(parameters), selection),
        scores=tuple(float(text) for text in table[metric]),
        strata=tuple(int(text or 0) for text in table["generation"])
        if sources
        else (0,) * len(kept),
        adaptive="unknown optimizer" if sources and len(set(table["generation"])) > 1 else None,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _read_columns(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise user_error(
            got=f"{path}: {reason}",
            expected="a CSV file in UTF-8, a line for each run",
            do="check the path",
        ) from error
    if len(rows) < 2:
        raise user_error(
            got=f"{path} with {len(rows)} lines",
            expected="a line of names, and a line for each run",
            do="export it again",
        )
    names, *lines = rows
    if uneven := next(
        (number for number, row in enumerate(lines, 2) if len(row) != len(names)), None
    ):
        got = f"{path}: line {uneven} with {len(lines[uneven - 2])} cells under {len(names)} names"
        raise user_error(got=got, expected="as many cells in every line", do="export it again")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise user_error(
            got=f"{path} with several columns {', '.join(twice)}",
            expected="a name for each column",
            do="rename them",
        )
    return {name: [row[place].strip() for row in lines] for place, name in enumerate(names)}


def _choose_metric(table: Mapping[str, Sequence[str]], asked: str | None) -> str:
    numeric = [
        name
        for name, column in table.items()
        if any(parse_number(text) is not None for text in column)
    ]
    if asked is not None:
        refuse_training_metric(asked, numeric)
        if asked not in numeric:
            raise unknown_metric_error(
                asked,
                [
                    name
                    for name in numeric
                    if split_words(name) & EVALUATION_WORDS
                    and not split_words(name) & TRAINING_WORDS
                ]
                or numeric,
            )
        return asked
    found = [OBJECTIVE] if OBJECTIVE in numeric else _find_evaluation_metrics(numeric)
    if len(found) == 1:
        return found[0]
    raise user_error(
        got=f"{len(found) or 'no'} columns that may be the metric to rank by{': ' if found else ''}{', '.join(found)}",
        expected="one evaluation metric",
        do="name it with --metric (and --maximize where more is better)",
    )


def _find_evaluation_metrics(names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if split_words(name) & EVALUATION_WORDS
        and not split_words(name) & (TRAINING_WORDS | {"test"})
        and "interval" not in name
    ]


def _select_finished(
    table: Mapping[str, Sequence[str]], metric: str
) -> tuple[list[int], list[str]]:
    """The rows of finished runs of the search that have the metric, and what is to say of the others."""
    rows = list(range(len(table[metric])))
    notes = []
    phases = table.get("phase", ())
    # Of our own phases the last search is what a study is about; of another program's only one that is called so.
    searches = [
        phase
        for phase in dict.fromkeys(phases)
        if (is_search(phase) if set(table) >= _EXPORT_COLUMNS else phase == SEARCH)
    ]
    if searches:
        rows = [row for row in rows if phases[row] == searches[-1]]
    state = next((column for name, column in table.items() if name.lower() == "state"), None)
    if state is not None and any(text.lower() in _FINISHED_STATES for text in state):
        ended = [row for row in rows if state[row].lower() in _FINISHED_STATES]
        notes += (
            [f"{len(rows) - len(ended)} runs that did not finish are left out"]
            if len(ended) < len(rows)
            else []
        )
        rows = ended
    there = [row for row in rows if parse_number(table[metric][row]) is not None]
    notes += (
        [f"{len(rows) - len(there)} runs without a number for {metric} are left out"]
        if len(there) < len(rows)
        else []
    )
    return there, notes


def _explain_no_parameter(name: str, *, dotted: bool) -> str | None:
    """Why a column is taken for no parameter by its name; null when it may be one. dotted: the parameters are named as ours."""
    if name.startswith("_") or name.lower() in _RUN_COLUMNS or split_words(name) & {"seed"}:
        return "about the run"
    if dotted:
        return (
            None
            if name.startswith(("synapse.", "training.", "model.", "data."))
            else "no name of a configuration"
        )
    ours = name.startswith("training.")
    return "named like a measurement" if not ours and split_words(name) & _METRIC_WORDS else None


def _make_parameter(name: str, column: Sequence[str], *, forced: bool) -> RunParameter | str:
    """A column as a parameter, or why it is none."""
    if missing := sum(not text for text in column):
        return f"empty in {missing} of the runs"
    if len(set(column)) == 1:
        return f"constant ({column[0]})"
    numbers = [parse_number(text) for text in column]
    if None in numbers:
        lowered = {text.lower() for text in column}
        values: tuple[Value, ...] = (
            tuple(text.lower() == "true" for text in column)
            if lowered == {"true", "false"}
            else tuple(column)
        )
        if len(lowered) > MAX_TEXTS or (len(lowered) == len(column) and not forced):
            return f"{len(lowered)} different texts"
        return RunParameter(
            Dimension(name, "categorical", choices=tuple(sorted(set(values)))), values
        )
    if all(re.fullmatch(r"[+-]?\d+", text) for text in column):
        values = tuple(int(text) for text in column)
    else:
        values = tuple(float(text) for text in column)
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return f"constant ({column[0]})"
    if len(distinct) <= MAX_CHOICES:
        return RunParameter(Dimension(name, "categorical", choices=tuple(distinct)), values)
    return RunParameter(
        _make_range(name, [float(value) for value in distinct], integer=isinstance(values[0], int)),
        values,
    )


def _make_range(name: str, distinct: Sequence[float], *, integer: bool) -> Dimension:
    """The range of a column: its ends, rounded outward."""
    low, high = distinct[0], distinct[-1]
    log = low > 0.0 and high / low >= _LOG_RATIO
    if not integer:
        low, high = (
            round_to_digits(low, 1 if log else 2, up=False),
            round_to_digits(high, 1 if log else 2, up=True),
        )
    return Dimension(name, "log" if log else "lin", low, high, integer=integer)
