"""The runs that a refinement looks at, and those of a study; refine_table.py reads those of a CSV file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from synaptune.analysis.ranking import rescore_study
from synaptune.core.errors import find_nearest, user_error
from synaptune.search.space.space import Dimension, Value
from synaptune.study.database import keys as schema
from synaptune.study.reader import StudySnapshot

OBJECTIVE = "objective"
TRAINING_WORDS = frozenset(("train", "training", "trainer"))
EVALUATION_WORDS = frozenset(
    ("val", "valid", "validation", "eval", "evaluation", "dev", "test", "heldout")
)
NON_ADAPTIVE = ("random", "grid", "qmc")  # optimizers whose points do not depend on earlier losses


class RunParameter(NamedTuple):
    """A parameter of the runs: what it could be, and what it was in each run."""

    dimension: Dimension
    values: tuple[Value, ...]


@dataclass(frozen=True)
class RunTable:
    """Runs with a metric each.

    source: where they are from; strata: groups of runs that were drawn alike, by run (all 0: every run); adaptive: the optimizer
    whose later points depend on earlier losses, null for none; bounded: whether nothing outside the parameters' ranges is valid;
    left_out: what was no parameter, with the reason; notes: further things to know.
    """

    source: str
    metric: str
    maximize: bool
    parameters: tuple[RunParameter, ...]
    scores: tuple[float, ...]
    strata: tuple[int, ...]
    adaptive: str | None = None
    bounded: bool = False
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class RunGroup(NamedTuple):
    """The runs in a bin, or of a value: how many, high performers, their rate with its interval, mean of the metric (null: no runs)."""

    label: str
    runs: int
    winners: int
    rate: float
    low: float
    high: float
    mean: float | None


class ParameterTest(NamedTuple):
    """What the runs say of a parameter. edges: of the bins, empty where groups are values; values: of the groups otherwise;
    winning: its values in the high performers, best first; p_position: null for choices."""

    parameter: RunParameter
    groups: tuple[RunGroup, ...]
    edges: tuple[float, ...]
    values: tuple[Value, ...]
    winning_values: tuple[Value, ...]
    p_groups: float
    p_position: float | None
    p: float


class Narrowing(NamedTuple):
    """A narrowing: what is left (null: a fixed value instead), and why."""

    after: Dimension | None
    fixed: Value | None
    reason: str


@dataclass(frozen=True)
class RunSelection:
    """metric: null is the study's objective, or the one evaluation metric of a table; parameters: null takes all that look like
    one; renamed: new names of parameters by old ones."""

    metric: str | None = None
    maximize: bool = False
    parameters: tuple[str, ...] | None = None
    new_names: Mapping[str, str] | None = None


def read_study_runs(snapshot: StudySnapshot, selection: RunSelection) -> RunTable:
    """The trials of a study's last search; raises UserError when there is nothing to rank, or a training metric to rank by."""
    if not snapshot.searches:
        raise user_error(
            got=f"study {snapshot.name} without a search",
            expected="one that has begun",
            do="choose another study",
        )
    snapshot, space = rescore_study(snapshot), snapshot.spaces[snapshot.searches[-1]]
    known = sorted(
        {
            name
            for trial in snapshot.search_trials
            for name, value in trial.facts.items()
            if parse_number(value) is not None
        }
    )
    metric = refuse_training_metric(selection.metric or OBJECTIVE, [OBJECTIVE, *known])
    if metric != OBJECTIVE and metric not in known:
        raise unknown_metric_error(
            metric, [OBJECTIVE, *(name for name in known if split_words(name) & EVALUATION_WORDS)]
        )
    found = []
    for trial in snapshot.search_trials:
        loss = snapshot.get_complete_loss(trial)
        score = (
            loss
            if metric == OBJECTIVE
            else parse_number(trial.facts.get(metric))
            if trial.state == "complete"
            else None
        )
        if score is not None:
            found.append((trial, -score if metric == OBJECTIVE and snapshot.maximize else score))
    if not found:
        raise user_error(
            got=f"study {snapshot.name}: none of its {len(snapshot.search_trials)} trials has {metric}",
            expected="complete trials with it",
            do="search on, or choose another --metric or study",
        )
    engine = snapshot.engine
    adaptive = (
        engine.name if engine is not None and engine.name.lower() not in NON_ADAPTIVE else None
    )
    parameters = tuple(
        RunParameter(dimension, tuple(trial.values[dimension.name] for trial, _ in found))
        for dimension in space.dimensions
        if selection.parameters is None or dimension.name in selection.parameters
    )
    refuse_unknown_parameters(selection, space.names)
    lost = len(snapshot.search_trials) - len(found)
    return RunTable(
        source=f"study {snapshot.name}, {snapshot.searches[-1]}",
        metric=metric,
        maximize=snapshot.maximize if metric == OBJECTIVE else selection.maximize,
        parameters=rename_parameters(parameters, selection),
        scores=tuple(score for _, score in found),
        strata=tuple(
            int(trial.facts.get(schema.GENERATION, 0)) if adaptive else 0 for trial, _ in found
        ),
        adaptive=adaptive,
        bounded=True,
        notes=(f"{lost} of {len(snapshot.search_trials)} trials have no {metric} and are left out",)
        if lost
        else (),
    )


def refuse_training_metric(metric: str, known: Sequence[str]) -> str:
    """The metric; raises UserError for one of training."""
    if not split_words(metric) & TRAINING_WORDS:
        return metric
    offered = [
        name
        for name in known
        if name == OBJECTIVE
        or (split_words(name) & EVALUATION_WORDS and not split_words(name) & TRAINING_WORDS)
    ]
    raise user_error(
        got=f"--metric {metric}, which is measured in training: ranking by it chooses what overfits",
        expected=f"an evaluation metric ({', '.join(offered) or 'none is there'})",
        do="name one with --metric" if offered else "export the runs with one",
    )


def unknown_metric_error(metric: str, known: Sequence[str]) -> Exception:
    return user_error(
        got=f"--metric {metric}",
        expected=f"one of {', '.join(known)}",
        do=f"choose one (closest: {find_nearest(metric, known)})",
    )


def round_to_digits(number: float, digits: int, *, up: bool | None = None) -> float:
    """A number to so many significant digits: to the nearest, or up or down."""
    if number == 0.0:
        return 0.0
    unit = digits - 1 - math.floor(math.log10(abs(number)))
    scaled = float(f"{number * 10.0**unit:.9g}")
    whole = round(scaled) if up is None else math.ceil(scaled) if up else math.floor(scaled)
    return float(f"{whole}e{-unit}")


def rename_parameters(
    parameters: tuple[RunParameter, ...], selection: RunSelection
) -> tuple[RunParameter, ...]:
    new = selection.new_names or {}
    return tuple(
        parameter._replace(
            dimension=replace(
                parameter.dimension,
                name=new.get(parameter.dimension.name, parameter.dimension.name),
            )
        )
        for parameter in parameters
    )


def refuse_unknown_parameters(selection: RunSelection, known: Sequence[str]) -> None:
    asked = (*(selection.parameters or ()), *(selection.new_names or ()))
    if unknown := [
        f"{name} (closest: {find_nearest(name, known)})" for name in asked if name not in known
    ]:
        raise user_error(
            got=f"no parameter {'; '.join(unknown)}",
            expected="names of its parameters",
            do="correct --parameters or --rename",
        )


def split_words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def parse_number(value: Any) -> float | None:
    """A finite number of a fact or a cell; null for anything else."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
