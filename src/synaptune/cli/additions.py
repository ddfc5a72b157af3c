"""`synaptune enqueue` and `synaptune import`: points and trials for the search of a study."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    STUDY_ARGUMENTS,
    ArgumentTable,
    add_subcommand,
    print_json,
)
from synaptune.core.errors import user_error

if TYPE_CHECKING:
    from synaptune.search.space.space import Space
    from synaptune.study.additions import StudyAddress
    from synaptune.study.reader import StudySnapshot

_ENQUEUE_ARGUMENTS: ArgumentTable = {
    **STUDY_ARGUMENTS,
    "values": dict(
        nargs="+",
        metavar="NAME=VALUE",
        help="values of searched parameters; the others get the value at which the search starts",
    ),
    "--again": dict(action="store_true", help="enqueue the point even if the study has it already"),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}
_IMPORT_ARGUMENTS: ArgumentTable = {
    **STUDY_ARGUMENTS,
    "source": dict(
        metavar="FROM",
        help="CSV or Parquet file with a line for each trial, or another study (name or folder)",
    ),
    "values": dict(
        nargs="*",
        metavar="NAME=VALUE",
        help="value that all trials of FROM had, for a parameter that FROM lacks",
    ),
    "--objective": dict(
        metavar="COLUMN", help="column of the objective in a file (default: objective, or value)"
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}


def add_commands(commands: Any) -> None:
    """Add the subcommands."""
    summary = "add a point to a study, which its search evaluates before its next own point"
    add_subcommand(commands, "enqueue", summary, _ENQUEUE_ARGUMENTS, _run_enqueue)
    summary = "add finished trials of a table or another study, which the optimizer then learns"
    add_subcommand(commands, "import", summary, _IMPORT_ARGUMENTS, _run_import)


def _run_enqueue(options: argparse.Namespace) -> None:
    from synaptune.study.additions import complete_point, find_duplicate

    snapshot, phase, space, address = _open_target(options)
    if snapshot.engine is not None and snapshot.engine.name == "pbt":
        raise user_error(
            got=f"a point for study {snapshot.name}, which trains a population in slices (pbt)",
            expected="a search whose points are whole runs",
            do="start another study at these values, as overrides of its command",
        )
    values = complete_point(space, _parse_values(options.values))
    trials = snapshot.get_phase_trials(phase)
    duplicate = find_duplicate(values, trials, snapshot.notes, phase)
    is_added = options.again or duplicate is None
    if is_added:
        address.enqueue(phase, values)
    shown = ", ".join(f"{name}={value}" for name, value in values.items())
    if is_added:
        print(f"enqueued in study {snapshot.name}: {shown}\n{_describe_next(snapshot)}")
    else:
        print(f"not enqueued: {duplicate}; --again evaluates it once more")
    content = {"study": snapshot.name, "values": values, "enqueued": is_added, "known": duplicate}
    if options.json:
        print_json(options, content)


def _describe_next(snapshot: StudySnapshot) -> str:
    """Return when the search evaluates an enqueued point."""
    if snapshot.state == "running":
        return "the running search evaluates it when a worker is free"
    if snapshot.state == "interrupted":
        return "the search evaluates it first when it is continued"
    return (
        "the search has ended: continue it with a larger budget, and it evaluates the point first"
    )


def _run_import(options: argparse.Namespace) -> None:
    from synaptune.analysis.imports import TABLE_ENDINGS, read_study_trials, read_table_trials
    from synaptune.study.database import keys as schema
    from synaptune.study.reader import find_study

    snapshot, phase, space, address = _open_target(options)
    fixed, path = _parse_values(options.values), Path(options.source)
    if path.is_file() or path.suffix.lower() in TABLE_ENDINGS:
        trials = read_table_trials(path, space, fixed, options.objective)
    else:
        if options.objective is not None:
            raise user_error(
                got="--objective with a study", expected="a file", do="omit --objective"
            )
        trials = read_study_trials(find_study(options.source), snapshot, space, fixed)
    known = [*snapshot.get_phase_trials(schema.IMPORTED), *snapshot.get_phase_trials(phase)]
    counts = address.import_trials(space, trials, known)
    print(
        f"imported {counts.added} of {len(trials)} finished trials of {options.source} into study"
        f" {snapshot.name}"
        + (f"; the study had {counts.known} already" if counts.known else "")
        + (f"; {counts.outside} lie outside its ranges" if counts.outside else "")
    )
    engine = snapshot.engine
    if counts.added and engine is not None:
        print(_describe_learning(engine.name))
    if options.json:
        print_json(options, {"study": snapshot.name, "phase": phase, **counts._asdict()})


def _describe_learning(optimizer: str) -> str:
    """Return how an optimizer uses imported trials."""
    if optimizer in ("random", "grid", "qmc", "pbt"):
        return f"{optimizer} does not learn: its points stay the same"
    if optimizer == "cmaes":
        return "cmaes of Optuna ignores them; tpe, gp, cma and Nevergrad's algorithms use them"
    if optimizer == "cma":
        return "cma learns the best of them with its next generation"
    return f"{optimizer} learns them before its next generation"


def _open_target(
    options: argparse.Namespace,
) -> tuple[StudySnapshot, str, Space, StudyAddress]:
    """Return a study, the phase and the space of its last search, and its address."""
    from synaptune.cli.studies import find_location
    from synaptune.study.additions import StudyAddress
    from synaptune.study.reader import read_study

    location, _ = find_location(options.study, options.storage)
    snapshot = read_study(location.url, location.name)
    if not snapshot.searches or not snapshot.spaces[snapshot.searches[-1]].names:
        raise user_error(
            got=f"study {location.name} without a search over parameters",
            expected="a study whose search has started its first trial, running or not",
            do="start the search (train.py -m, synaptune phase1), then give this command again",
        )
    phase = snapshot.searches[-1]
    return snapshot, phase, snapshot.spaces[phase], StudyAddress(location.url, location.name)


def _parse_values(words: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE, with the values of Hydra's command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, values = OverridesParser.create(), {}
    for word in words:
        try:
            override = parser.parse_override(word)
            is_value = "=" in word and not (override.is_sweep_override() or override.is_delete())
        except HydraException:
            is_value = False
        if not is_value:
            raise user_error(
                got=word,
                expected="NAME=VALUE with one value, as synapse.calcium.alpha_ca=0.5",
                do="correct it",
            )
        values[override.key_or_group] = override.value()
    return values
