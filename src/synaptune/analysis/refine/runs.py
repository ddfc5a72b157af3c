"""The runs that a refinement looks at, and those of a study; refine_table.py reads those of a CSV file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from synaptune.analysis.ranking import ranked
from synaptune.core.errors import mistake, nearest
from synaptune.search.space.space import Dimension, Value
from synaptune.study.database import keys as schema
from synaptune.study.reader import Record

OBJECTIVE = "objective"
TRAINING = frozenset(("train", "training", "trainer"))
EVALUATION = frozenset(("val", "valid", "validation", "eval", "evaluation", "dev", "test", "heldout"))
BLIND = ("random", "grid", "qmc")  # optimizers whose points do not depend on earlier losses


class Parameter(NamedTuple):
    """A parameter of the runs: what it could be, and what it was in each run."""

    dimension: Dimension
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Runs:
    """Runs with a metric each.

    source: where they are from; strata: groups of runs that were drawn alike, by run (all 0: every run); adaptive: the optimizer
    whose later points depend on earlier losses, null for none; bounded: whether nothing outside the parameters' ranges is valid;
    left_out: what was no parameter, with the reason; notes: further things to know.
    """

    source: str
    metric: str
    maximize: bool
    parameters: tuple[Parameter, ...]
    scores: tuple[float, ...]
    strata: tuple[int, ...]
    adaptive: str | None = None
    bounded: bool = False
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class Group(NamedTuple):
    """The runs in a bin, or of a value: how many, high performers, their rate with its interval, mean of the metric (null: no runs)."""

    label: str
    runs: int
    winners: int
    rate: float
    low: float
    high: float
    mean: float | None


class Found(NamedTuple):
    """What the runs say of a parameter. edges: of the bins, empty where groups are values; values: of the groups otherwise;
    winning: its values in the high performers, best first; p_position: null for choices."""

    parameter: Parameter
    groups: tuple[Group, ...]
    edges: tuple[float, ...]
    values: tuple[Value, ...]
    winning: tuple[Value, ...]
    p_groups: float
    p_position: float | None
    p: float


class Change(NamedTuple):
    """A narrowing: what is left (null: a fixed value instead), and why."""

    after: Dimension | None
    fixed: Value | None
    reason: str


@dataclass(frozen=True)
class Wanted:
    """metric: null is the study's objective, or the one evaluation metric of a table; parameters: null takes all that look like
    one; renamed: new names of parameters by old ones."""

    metric: str | None = None
    maximize: bool = False
    parameters: tuple[str, ...] | None = None
    renamed: Mapping[str, str] | None = None


def of_study(record: Record, wanted: Wanted) -> Runs:
    """The trials of a study's last search; raises UserError when there is nothing to rank, or a training metric to rank by."""
    if not record.searches:
        raise mistake(got=f"study {record.name} without a search", expected="one that has begun", do="choose another study")
    record, space = ranked(record), record.spaces[record.searches[-1]]
    known = sorted({name for trial in record.searched for name, value in trial.facts.items() if number_of(value) is not None})
    metric = refuse_training(wanted.metric or OBJECTIVE, [OBJECTIVE, *known])
    if metric != OBJECTIVE and metric not in known:
        raise no_metric(metric, [OBJECTIVE, *(name for name in known if words(name) & EVALUATION)])
    found = []
    for trial in record.searched:
        loss = record.achieved(trial)
        score = loss if metric == OBJECTIVE else number_of(trial.facts.get(metric)) if trial.state == "complete" else None
        if score is not None:
            found.append((trial, -score if metric == OBJECTIVE and record.maximize else score))
    if not found:
        raise mistake(
            got=f"study {record.name}: none of its {len(record.searched)} trials has {metric}",
            expected="complete trials with it",
            do="search on, or choose another --metric or study",
        )
    engine = record.engine
    adaptive = engine.name if engine is not None and engine.name.lower() not in BLIND else None
    parameters = tuple(
        Parameter(dimension, tuple(trial.values[dimension.name] for trial, _ in found))
        for dimension in space.dimensions
        if wanted.parameters is None or dimension.name in wanted.parameters
    )
    refuse_unknown(wanted, space.names)
    lost = len(record.searched) - len(found)
    return Runs(
        source=f"study {record.name}, {record.searches[-1]}",
        metric=metric,
        maximize=record.maximize if metric == OBJECTIVE else wanted.maximize,
        parameters=renamed(parameters, wanted),
        scores=tuple(score for _, score in found),
        strata=tuple(int(trial.facts.get(schema.GENERATION, 0)) if adaptive else 0 for trial, _ in found),
        adaptive=adaptive,
        bounded=True,
        notes=(f"{lost} of {len(record.searched)} trials have no {metric} and are left out",) if lost else (),
    )


def refuse_training(metric: str, known: Sequence[str]) -> str:
    """The metric; raises UserError for one of training."""
    if not words(metric) & TRAINING:
        return metric
    offered = [name for name in known if name == OBJECTIVE or (words(name) & EVALUATION and not words(name) & TRAINING)]
    raise mistake(
        got=f"--metric {metric}, which is measured in training: ranking by it chooses what overfits",
        expected=f"an evaluation metric ({', '.join(offered) or 'none is there'})",
        do="name one with --metric" if offered else "export the runs with one",
    )


def no_metric(metric: str, known: Sequence[str]) -> Exception:
    return mistake(got=f"--metric {metric}", expected=f"one of {', '.join(known)}", do=f"choose one (closest: {nearest(metric, known)})")


def rounded(number: float, digits: int, *, up: bool | None = None) -> float:
    """A number to so many significant digits: to the nearest, or up or down."""
    if number == 0.0:
        return 0.0
    unit = digits - 1 - math.floor(math.log10(abs(number)))
    scaled = float(f"{number * 10.0**unit:.9g}")
    whole = round(scaled) if up is None else math.ceil(scaled) if up else math.floor(scaled)
    return float(f"{whole}e{-unit}")


def renamed(parameters: tuple[Parameter, ...], wanted: Wanted) -> tuple[Parameter, ...]:
    new = wanted.renamed or {}
    return tuple(
        parameter._replace(dimension=replace(parameter.dimension, name=new.get(parameter.dimension.name, parameter.dimension.name)))
        for parameter in parameters
    )


def refuse_unknown(wanted: Wanted, known: Sequence[str]) -> None:
    asked = (*(wanted.parameters or ()), *(wanted.renamed or ()))
    if unknown := [f"{name} (closest: {nearest(name, known)})" for name in asked if name not in known]:
        raise mistake(got=f"no parameter {'; '.join(unknown)}", expected="names of its parameters", do="correct --parameters or --rename")


def words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def number_of(value: Any) -> float | None:
    """A finite number of a fact or a cell; null for anything else."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
