"""Read runs from a CSV file with one line for each run.

Such a file is exported by Weights & Biases or by `synaptune export`, or was written by pandas or
Excel. Only an export of synaptune says which columns are parameters. In other files a column is a
parameter if both its name and its values are plausible. The columns that are left out are
reported; `--parameters` or `--rename` include them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synaptune.analysis.refine.csv_file import UNNAMED, read_table
from synaptune.analysis.refine.runs import (
    EVALUATION_WORDS,
    OBJECTIVE,
    TRAINING_WORDS,
    RunParameter,
    RunSelection,
    RunTable,
    check_metric,
    find_name_fault,
    is_evaluation_metric,
    parse_number,
    refuse_unknown_parameters,
    rename_parameters,
    round_outward,
    shorten_list,
    split_words,
)
from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value, make_key
from synaptune.study.cells import MISSING, decode_column
from synaptune.study.database import keys as schema
from synaptune.study.reader import SEARCH, is_search
from synaptune.study.table import find_parameters, is_export

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
_FINISHED_STATES = ("finished", "complete", "completed")
_UNKNOWN = -1  # the generation of a run without one
_PANDAS_INDEX = re.compile(r"unnamed: \d+")


@dataclass(frozen=True)
class _Cells:
    """The cells of the rows that count.

    Attributes:
        path: the file.
        columns: the cells by column.
        lines: the line of the file of each row.
        decimal_comma: whether numbers may have a decimal comma.
        parameters: the parameters by column in an export of synaptune; None if unknown.
        counts: columns whose whole numbers were written as 8.0, as pandas does beside empty cells.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    decimal_comma: bool
    parameters: Mapping[str, str] | None
    counts: frozenset[str] = frozenset()

    @property
    def is_export(self) -> bool:
        """Whether synaptune exported the table."""
        return is_export(self.columns)

    def decode(self, name: str) -> list[Value]:
        """Return the values of a column."""
        values = decode_column(self.columns[name], decimal_comma=self.decimal_comma)
        if name in self.counts:
            return [value if value is MISSING else int(value) for value in values]
        return values

    def get_numbers(self, name: str) -> list[float | None]:
        """Return the finite numbers of a column, None for any other cell."""
        return [parse_number(value) for value in _as_numbers(self.decode(name))]

    def find_text(self, name: str) -> str | None:
        """Return the place and content of the first cell of a column that is a text."""
        cells = zip(self.lines, self.decode(name), strict=True)
        return next(
            (f"line {at}: {value!r}" for at, value in cells if isinstance(value, str)), None
        )

    def select(self, rows: Sequence[int]) -> _Cells:
        """Return some of the rows."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        lines = [self.lines[row] for row in rows]
        return _Cells(
            self.path, columns, lines, self.decimal_comma, self.parameters, self._find_counts()
        )

    def _find_counts(self) -> frozenset[str]:
        generations = self.columns.get(schema.GENERATION, ())
        if self.is_export and not any("." in text for text in generations):
            return frozenset()  # no other program has changed the file
        return frozenset(name for name in self.columns if _holds_counts(self.decode(name)))


def _holds_counts(values: Sequence[Value]) -> bool:
    """Return whether a column has empty cells and otherwise whole numbers, all written as 8.0."""
    present = [value for value in values if value is not MISSING]
    return 0 < len(present) < len(values) and all(
        isinstance(value, float) and value.is_integer() for value in present
    )


def _as_numbers(values: Sequence[Value]) -> list[Any]:
    """Return the values with texts and empty cells as None; text is never parsed again."""
    return [None if value is MISSING or isinstance(value, str) else value for value in values]


def read_csv_runs(path: Path, selection: RunSelection) -> RunTable:
    """Read the runs of a CSV file whose first line names the columns.

    Raises:
        UserError: the file cannot be read, or as `read_study_runs`.
    """
    table = read_table(path)
    cells = _Cells(path, *table, find_parameters(list(table.columns)))
    metric = _choose_metric(cells, selection.metric)
    finished, notes = _select_finished(cells, metric)
    if len(finished) < 2:
        raise user_error(
            got=f"{path} with {len(finished) or 'no'} finished run{'s' * (len(finished) != 1)} that"
            f" {'have' if len(finished) != 1 else 'has'} {metric}",
            expected="several runs with numbers in that column",
            do="check --metric, or export more runs",
        )
    cells = cells.select(finished)
    names = dict(cells.parameters or {})
    refuse_unknown_parameters(selection, [*cells.columns, *names.values()])
    parameters, left_out = _choose_parameters(cells, metric, selection)
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
    generations = _read_generations(cells, notes)
    return RunTable(
        source=path.name,
        metric=metric,
        maximize=selection.maximize,
        parameters=rename_parameters(parameters, selection),
        scores=tuple(float(value) for value in cells.decode(metric)),
        strata=generations,
        adaptive="unknown optimizer" if len({*generations} - {_UNKNOWN}) > 1 else None,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _read_generations(cells: _Cells, notes: list[str]) -> tuple[int, ...]:
    """Return the generation of each run, and add a note on runs without one.

    Only an export of synaptune says which runs were drawn from the same distribution.
    """
    if not cells.is_export:
        return (0,) * len(cells.lines)
    generations = []
    for line, value in zip(cells.lines, cells.decode(schema.GENERATION), strict=True):
        number = float(_UNKNOWN) if value is MISSING else parse_number(*_as_numbers([value]))
        if number is None or number != int(number):
            raise user_error(
                got=f"{cells.path}: line {line}, column {schema.GENERATION}: {value!r}",
                expected="a whole number",
                do="correct the cell, or remove the column",
            )
        generations.append(int(number))
    if unknown := generations.count(_UNKNOWN):
        notes.append(f"{unknown} runs without a generation are compared with each other only")
    return tuple(generations)


def _choose_parameters(
    cells: _Cells, metric: str, selection: RunSelection
) -> tuple[list[RunParameter], list[tuple[str, str]]]:
    """Return the columns that are parameters, and the others with the reason."""
    selected = {*(selection.parameters or ()), *(selection.new_names or ())}
    dotted = any(key.startswith("synapse.") for key in cells.columns)
    columns: dict[str, RunParameter | str] = {}
    for column in cells.columns:
        name = (cells.parameters or {}).get(column, column)
        is_selected = not selected.isdisjoint((name, column))
        reason = None
        if not is_selected:
            reason = (
                _explain_no_parameter(column, cells.parameters, dotted=dotted)
                if selection.parameters is None
                else "not among --parameters"
            )
        if column != metric:
            new_name = (selection.new_names or {}).get(name, name)
            columns[name if is_selected else column] = (
                reason
                or find_name_fault(new_name)
                or _make_parameter(name, column, cells, forced=is_selected)
            )
    left_out = [(name, reason) for name, reason in columns.items() if isinstance(reason, str)]
    unusable = [f"{name}: {reason}" for name, reason in left_out if name in selected]
    if unusable:
        raise user_error(
            got=f"columns of {cells.path} that cannot be parameters: "
            + shorten_list(unusable, "; "),
            expected="columns that vary, with a value in every run, and names of letters, digits, "
            "_, - and .",
            do="leave them out, correct the cells, or give a name with --rename COLUMN=NAME",
        )
    return [entry for entry in columns.values() if isinstance(entry, RunParameter)], left_out


def _choose_metric(cells: _Cells, metric: str | None) -> str:
    numeric = [
        name
        for name in cells.columns
        if any(number is not None for number in cells.get_numbers(name))
    ]
    if metric is not None and metric in cells.columns and metric not in numeric:
        raise user_error(
            got=f"{cells.path} without a number in column {metric}"
            f" ({cells.find_text(metric) or 'its cells are empty'})",
            expected="numbers such as 0.25 or 2.5e-1",
            do="correct the column, or choose another --metric",
        )
    if metric is not None:
        return check_metric(metric, numeric)
    candidates = [OBJECTIVE] if OBJECTIVE in numeric else _find_evaluation_metrics(numeric)
    if len(candidates) == 1:
        return candidates[0]
    names = f": {shorten_list(candidates)}" if candidates else ""
    texts = [
        f"{name} ({text})"
        for name in [OBJECTIVE, *_find_evaluation_metrics(list(cells.columns))]
        if not candidates and name in cells.columns and (text := cells.find_text(name))
    ]
    no_numbers = f"; no number in {shorten_list(texts)}" if texts else ""
    raise user_error(
        got=f"{len(candidates) or 'no'} columns that may be the metric to rank by"
        f"{names}{no_numbers}",
        expected="one evaluation metric",
        do="name it with --metric (and --maximize if more is better)",
    )


def _find_evaluation_metrics(names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if is_evaluation_metric(name) and "test" not in split_words(name) and "interval" not in name
    ]


def _select_finished(cells: _Cells, metric: str) -> tuple[list[int], list[str]]:
    """Return the rows of the finished search runs with the metric, and notes on the others."""
    # In an export of synaptune the last search phase counts; in other tables only a phase of that
    # name.
    phases = cells.columns.get(schema.PHASE, ())
    searches = [
        phase
        for phase in dict.fromkeys(filter(None, phases))
        if (is_search(phase) if cells.is_export else phase == SEARCH)
    ]
    rows = [row for row in range(len(cells.lines)) if not searches or phases[row] == searches[-1]]
    states = next((column for name, column in cells.columns.items() if name.lower() == "state"), ())
    finished = {row for row, state in enumerate(states) if state.lower() in _FINISHED_STATES}
    numbers, values = cells.get_numbers(metric), cells.decode(metric)
    notes = []
    if finished:
        remaining = [row for row in rows if row in finished]
        if len(remaining) < len(rows):
            notes.append(f"{len(rows) - len(remaining)} runs that did not finish are left out")
        rows = remaining
    scored = [row for row in rows if numbers[row] is not None]
    if len(scored) < len(rows):
        places = [
            f"line {cells.lines[row]}: {values[row]!r}"
            for row in rows
            if numbers[row] is None and isinstance(values[row], str)
        ]
        if len(places) > len(scored):
            raise user_error(
                got=f"{cells.path}, column {metric}: no number in {shorten_list(places)}",
                expected="numbers such as 0.25 or 2.5e-1",
                do="correct the cells, or choose another --metric",
            )
        where = f" ({shorten_list(places)})" if places else ""
        notes.append(
            f"{len(rows) - len(scored)} runs without a number for {metric} are left out{where}"
        )
    return scored, notes


def _explain_no_parameter(
    name: str, exported: Mapping[str, str] | None, *, dotted: bool
) -> str | None:
    """Return why the name of a column excludes it as a parameter; None if it may be one.

    Args:
        name: name of the column.
        exported: the parameters by column in an export of synaptune.
        dotted: whether the table has names of synaptune's configuration.
    """
    if exported is not None:
        return None if name in exported else "about the run"
    lower = name.lower()
    if (
        lower.startswith(("_", UNNAMED))
        or lower in _RUN_COLUMNS
        or _PANDAS_INDEX.fullmatch(lower)
        or split_words(name) & {"seed"}
    ):
        return "about the run"
    if dotted:
        is_setting = name.startswith(("synapse.", "training.", "model.", "data."))
        return None if is_setting else "not a name of the configuration"
    is_measurement = split_words(name) & _METRIC_WORDS and not name.startswith("training.")
    return "named like a measurement" if is_measurement else None


def _make_parameter(name: str, column: str, cells: _Cells, *, forced: bool) -> RunParameter | str:
    """Make a parameter of a column, or return why it is not a parameter."""
    values = cells.decode(column)
    distinct = {make_key(value): value for value in values if value is not MISSING}
    numbers = sorted(filter(_is_number, distinct.values()))
    if None in distinct.values() and len(numbers) > MAX_CHOICES:
        values = [MISSING if value is None else value for value in values]  # no choice of a range
    if missing := values.count(MISSING):
        return f"empty in {missing} of the runs (line {cells.lines[values.index(MISSING)]})"
    if len(distinct) == 1:
        return f"constant ({cells.columns[column][0]})"
    if numbers and (fault := _find_text_fault(values, cells.lines, len(numbers))):
        return fault
    others = len(distinct) - len(numbers)
    if others and (len(distinct) > MAX_TEXTS or (len(distinct) == len(values) and not forced)):
        return f"{len(distinct)} different texts"
    if others or len(distinct) <= MAX_CHOICES:
        choices = (*numbers, *sorted(filter(_is_no_number, distinct.values()), key=make_key))
        return RunParameter(Dimension(name, "categorical", choices=choices), tuple(values))
    if infinite := [at for at in numbers if not math.isfinite(at)]:
        return f"line {cells.lines[values.index(infinite[0])]}: {infinite[0]} in a range of numbers"
    return RunParameter(_make_range(name, numbers), tuple(values))


def _find_text_fault(values: Sequence[Value], lines: Sequence[int], numbers: int) -> str | None:
    """Return the first text that cannot be a choice beside numbers.

    It occurs once, or the column has too many distinct numbers for choices.
    """
    texts = [value for value in values if isinstance(value, str)]
    odd = (
        f"line {line}: {value!r} among numbers"
        for line, value in zip(lines, values, strict=True)
        if isinstance(value, str) and (numbers > MAX_CHOICES or texts.count(value) == 1)
    )
    return next(odd, None)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_no_number(value: Value) -> bool:
    return not _is_number(value)


def _make_range(name: str, distinct: Sequence[float]) -> Dimension:
    """Make the range of a column from its sorted values, rounded outward unless they are whole."""
    low, high = distinct[0], distinct[-1]
    log, integer = low > 0.0 and high / low >= _LOG_RATIO, all(isinstance(v, int) for v in distinct)
    if not integer:
        low, high = round_outward(float(low), float(high), log=log)
    return Dimension(name, "log" if log else "lin", low, high, integer=integer)
