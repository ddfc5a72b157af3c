"""Finished trials of a table or of another study, for the search of a study that imports them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synaptune.analysis.refine.csv_file import read_table
from synaptune.core.errors import suggest, user_error
from synaptune.search.objective.score import get_objective_label
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value
from synaptune.search.trial import TrialStatus
from synaptune.study.additions import ImportedTrial
from synaptune.study.cells import MISSING, decode_column
from synaptune.study.database import keys as schema
from synaptune.study.reader import StudySnapshot, is_search
from synaptune.study.table import find_parameters, is_export

TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".parquet")
_OBJECTIVES = ("objective", "value")  # columns of synaptune and of Optuna
_COMPLETE = ("complete", "completed", "finished")
_UNFINISHED = ("running", "waiting", "pending", "queued")


def read_study_trials(
    snapshot: StudySnapshot, target: StudySnapshot, space: Space, fixed: Mapping[str, Value]
) -> list[ImportedTrial]:
    """Return the ended trials of the last search of another study.

    Args:
        snapshot: the other study.
        target: the study that imports them.
        space: space of its search.
        fixed: values by name of parameters that the trials lack.

    Raises:
        UserError: the studies optimize different objectives, or parameters are missing.
    """
    for label, source, own in (
        ("objective", *(get_objective_label(study.configuration) for study in (snapshot, target))),
        ("direction", *(_describe_direction(study) for study in (snapshot, target))),
    ):
        if source != own:
            raise user_error(
                got=f"study {snapshot.name} with the {label} {source}",
                expected=f"{own}, as in study {target.name}",
                do="import a study with the same objective",
            )
    trials = [trial for trial in snapshot.whole_runs if trial.state != "running"]
    known = {name for trial in trials[:1] for name in trial.values}
    _check_names(space, known, fixed, f"study {snapshot.name}")
    return [
        ImportedTrial(
            _choose(space, trial.values, fixed),
            trial.state,
            trial.estimate if trial.state == "pruned" else trial.objective,
            f"study {snapshot.name}",
            trial.number,
        )
        for trial in trials
    ]


def _describe_direction(study: StudySnapshot) -> str:
    return "maximize" if study.maximize else "minimize"


def read_table_trials(
    path: Path, space: Space, fixed: Mapping[str, Value], objective: str | None = None
) -> list[ImportedTrial]:
    """Return the finished trials of a CSV or Parquet file with a line for each trial.

    A parameter has the column of its name, as `synaptune export` and W&B write it, or
    `params_NAME`, as Optuna does. Of an export of synaptune the last search counts. A row without
    a state is complete if it has an objective, and is left out otherwise.

    Args:
        path: the file.
        space: space of the search that imports the trials.
        fixed: values by name of parameters that the table lacks.
        objective: column of the objective; None means `objective` or `value`.

    Raises:
        UserError: the file cannot be read, or columns are missing.
    """
    table = read_table(path)
    columns = table.columns
    exported = {name: column for column, name in (find_parameters(list(columns)) or {}).items()}
    places = {
        name: next(
            (key for key in (exported.get(name), name, f"params_{name}") if key in columns), None
        )
        for name in space.names
    }
    _check_names(space, {name for name, key in places.items() if key is not None}, fixed, str(path))
    decode = {"decimal_comma": table.decimal_comma}
    values = {
        name: decode_column(columns[key], **decode)
        for name, key in places.items()
        if key is not None
    }
    results = decode_column(columns[_find_objective(path, columns, objective)], **decode)
    estimates = _get_column(columns, schema.ESTIMATE, decode, len(results))
    numbers = _get_column(columns, "number", decode, len(results))
    states = next((cells for name, cells in columns.items() if name.lower() == "state"), None)
    trials = []
    for row in _choose_rows(columns, len(results)):
        state, result = _read_result(
            None if states is None else states[row].lower(), results[row], estimates[row]
        )
        point = {name: column[row] for name, column in values.items()}
        if state is None or MISSING in point.values():
            continue
        number = numbers[row]
        trials.append(
            ImportedTrial(
                _choose(space, point, fixed),
                state,
                result,
                path.name,
                number if isinstance(number, int) else None,
            )
        )
    if not trials:
        raise user_error(
            got=f"{path} without a finished trial",
            expected="rows with an objective and all parameters of the study",
            do="check the file, or name the column with --objective",
        )
    return trials


def _get_column(
    columns: Mapping[str, Sequence[str]], name: str, decode: Mapping[str, Any], count: int
) -> list[Any]:
    return decode_column(columns[name], **decode) if name in columns else [MISSING] * count


def _choose_rows(columns: Mapping[str, Sequence[str]], count: int) -> list[int]:
    phases = columns.get(schema.PHASE, ()) if is_export(columns) else ()
    searches = [phase for phase in dict.fromkeys(phases) if is_search(phase)]
    return [row for row in range(count) if not phases or phases[row] in searches[-1:]]


def _find_objective(path: Path, columns: Mapping[str, Any], objective: str | None) -> str:
    wanted = _OBJECTIVES if objective is None else (objective,)
    for name in wanted:
        if name in columns:
            return name
    nearest = "" if objective is None else suggest(objective, columns)
    raise user_error(
        got=f"{path} without a column {' or '.join(wanted)}",
        expected=f"a column with the objective of the study{nearest}",
        do="name it with --objective COLUMN",
    )


def _read_result(
    state: str | None, result: Any, estimate: Any
) -> tuple[TrialStatus | None, float | None]:
    """Return state and result of a row; no state for a row that does not count."""
    number = _to_number(result)
    if state is None or state in _COMPLETE:
        return (None, None) if number is None else ("complete", number)
    if state in _UNFINISHED:
        return None, None
    if state == "pruned":
        known = _to_number(estimate)
        return "pruned", number if known is None else known
    return "failed", None


def _to_number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _check_names(space: Space, known: set[str], fixed: Mapping[str, Value], source: str) -> None:
    unknown = [name for name in fixed if name not in space.names]
    if unknown:
        raise user_error(
            got=f"{unknown[0]}, which the study does not search{suggest(unknown[0], space.names)}",
            expected=f"one of {', '.join(space.names)}",
            do="correct or omit it",
        )
    if doubled := [name for name in fixed if name in known]:
        raise user_error(
            got=f"{doubled[0]}={fixed[doubled[0]]}, where {source} has {doubled[0]} itself",
            expected="values only of parameters that it lacks",
            do="omit it",
        )
    missing = [name for name in space.names if name not in known and name not in fixed]
    if missing:
        raise user_error(
            got=f"{source} without {', '.join(missing)}",
            expected="a value for every parameter of the search",
            do="give the value that all its trials had: "
            + " ".join(f"{name}=VALUE" for name in missing),
        )


def _choose(
    space: Space, values: Mapping[str, Value], fixed: Mapping[str, Value]
) -> dict[str, Value]:
    return {name: fixed.get(name, values.get(name)) for name in space.names}
