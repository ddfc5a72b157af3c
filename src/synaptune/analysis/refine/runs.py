"""Runs that a refinement analyses, and their source in a study; table.py reads a CSV file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from synaptune.analysis.effects import find_effects
from synaptune.analysis.ranking import rescore_study
from synaptune.analysis.replay import replay_rescored
from synaptune.core.errors import suggest, user_error
from synaptune.search.space.file import is_name
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value
from synaptune.study.database import keys as schema
from synaptune.study.reader import StudySnapshot

OBJECTIVE = "objective"
TRAINING_WORDS = frozenset(("train", "training", "trainer"))
EVALUATION_WORDS = frozenset(
    ("val", "valid", "validation", "eval", "evaluation", "dev", "test", "heldout")
)
_SHOWN = 8  # names in a message
NON_ADAPTIVE = ("random", "grid", "qmc")  # optimizers whose points do not depend on earlier losses


class RunParameter(NamedTuple):
    """A parameter of the runs: its dimension, and its value in each run."""

    dimension: Dimension
    values: tuple[Value, ...]


@dataclass(frozen=True)
class RunTable:
    """Runs and their metric.

    Attributes:
        source: origin of the runs.
        metric: name of the metric.
        maximize: whether a larger metric is better.
        parameters: the parameters and their values by run.
        scores: the metric by run.
        strata: stratum by run; runs of a stratum were drawn from the same distribution.
        adaptive: optimizer whose later points depend on earlier losses; None for none.
        bounded: whether values outside the ranges of the parameters are invalid.
        left_out: columns that are not parameters, with the reason.
        notes: notes for the report.
        effects: adjusted p of the effect of each parameter, as the report of the study tests it;
            empty where the report tests none.
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
    effects: Mapping[str, float] = field(default_factory=dict)


class RunGroup(NamedTuple):
    """The runs in a bin or with a value.

    Attributes:
        label: name of the bin, or the value.
        runs: number of runs.
        winners: number of high performers.
        rate: share of high performers.
        low: lower end of the rate's interval.
        high: upper end of the rate's interval.
        mean: mean of the metric; None without runs.
    """

    label: str
    runs: int
    winners: int
    rate: float
    low: float
    high: float
    mean: float | None


class ParameterTest(NamedTuple):
    """Test of whether success depends on a parameter.

    Attributes:
        parameter: the parameter.
        groups: the runs by bin or value.
        edges: edges of the bins; empty if the groups are values.
        values: values of the groups; empty if the groups are bins.
        winning_values: values of the high performers, the best run first.
        p_groups: p of the winners by group.
        p_position: p of the winners' position; None for choices.
        p: combined p.
    """

    parameter: RunParameter
    groups: tuple[RunGroup, ...]
    edges: tuple[float, ...]
    values: tuple[Value, ...]
    winning_values: tuple[Value, ...]
    p_groups: float
    p_position: float | None
    p: float


class Narrowing(NamedTuple):
    """A narrowed parameter.

    Attributes:
        after: the narrowed dimension; None if the parameter is fixed.
        fixed: the fixed value of a parameter that is not searched any more.
        reason: reason for the narrowing.
    """

    after: Dimension | None
    fixed: Value
    reason: str


@dataclass(frozen=True)
class RunSelection:
    """Which metric and parameters of the runs to read.

    Attributes:
        metric: name of the metric; None means the objective of a study, or the only evaluation
            metric of a table.
        maximize: whether a larger metric is better.
        parameters: names of the parameters; None means all columns that can be parameters.
        new_names: new names of parameters by old ones.
    """

    metric: str | None = None
    maximize: bool = False
    parameters: tuple[str, ...] | None = None
    new_names: Mapping[str, str] | None = None


def read_study_runs(snapshot: StudySnapshot, selection: RunSelection) -> RunTable:
    """Read the trials of the last search of a study.

    Raises:
        UserError: no trial can be ranked, or the metric is one of training.
    """
    if not snapshot.searches:
        raise user_error(
            got=f"study {snapshot.name} without a search",
            expected="a study whose search has begun",
            do="choose another study",
        )
    stored, space = snapshot, snapshot.spaces[snapshot.searches[-1]]
    snapshot = rescore_study(stored)
    metrics = {
        name
        for trial in snapshot.search_trials
        for name, value in trial.facts.items()
        if parse_number(value) is not None
    }
    metric = check_metric(selection.metric or OBJECTIVE, [OBJECTIVE, *sorted(metrics)])
    scores = {
        trial.number: parse_number(
            trial.objective if metric == OBJECTIVE else trial.facts.get(metric)
        )
        for trial in snapshot.search_trials
        if trial.state == "complete"
    }
    ranked = [trial for trial in snapshot.search_trials if scores.get(trial.number) is not None]
    count = len(snapshot.search_trials)
    if not ranked:
        raise user_error(
            got=f"study {snapshot.name}: none of its {count} trials has {metric}",
            expected="complete trials with it",
            do="continue the search, or choose another --metric or study",
        )
    engine = snapshot.engine
    is_adaptive = engine is not None and engine.name.lower() not in NON_ADAPTIVE
    refuse_unknown_parameters(selection, space.names)
    parameters, left_out = [], []
    for dimension in space.dimensions:
        name = dimension.name
        fault = find_name_fault((selection.new_names or {}).get(name, name))
        if selection.parameters is not None and name not in selection.parameters:
            fault = "not among --parameters"
        if fault is None:
            values = tuple(trial.values[name] for trial in ranked)
            parameters.append(RunParameter(dimension, values))
        else:
            left_out.append((name, fault))
    unranked = count - len(ranked)
    note = f"{unranked} of {count} trials have no {metric} and are left out"
    return RunTable(
        source=f"study {snapshot.name}, {snapshot.searches[-1]}",
        metric=metric,
        maximize=snapshot.maximize if metric == OBJECTIVE else selection.maximize,
        parameters=rename_parameters(parameters, selection),
        scores=tuple(scores[trial.number] for trial in ranked),  # type: ignore[misc]
        strata=tuple(
            int(trial.facts.get(schema.GENERATION, 0)) if is_adaptive else 0 for trial in ranked
        ),
        adaptive=engine.name if engine is not None and is_adaptive else None,
        bounded=True,
        left_out=tuple(left_out),
        notes=(note,) if unranked else (),
        effects={}
        if metric != OBJECTIVE
        else {
            (selection.new_names or {}).get(effect.name, effect.name): effect.adjusted_p
            for effect in find_effects(replay_rescored(stored), space.names)
        },
    )


def is_evaluation_metric(name: str) -> bool:
    """Return whether a name identifies a metric of an evaluation, and not of training."""
    return bool(split_words(name) & EVALUATION_WORDS) and not split_words(name) & TRAINING_WORDS


def check_metric(metric: str, known: Sequence[str]) -> str:
    """Return the metric.

    Raises:
        UserError: it is measured in training, or is not among the known metrics.
    """
    valid = [name for name in known if name == OBJECTIVE or is_evaluation_metric(name)]
    if split_words(metric) & TRAINING_WORDS:
        raise user_error(
            got=f"--metric {metric}, which is measured in training: ranking by it favours "
            "overfitting",
            expected=f"an evaluation metric ({shorten_list(valid) or 'the runs have none'})",
            do="name one with --metric" if valid else "export the runs with one",
        )
    if metric not in known:
        raise user_error(
            got=f"--metric {metric}",
            expected=f"one of {shorten_list(valid or known)}",
            do=f"choose one{suggest(metric, valid or known)}",
        )
    return metric


def round_to_digits(number: float, digits: int, *, up: bool | None = None) -> float:
    """Round a number to significant digits.

    Args:
        number: the number.
        digits: number of significant digits.
        up: round up (True), down (False) or to the nearest (None).
    """
    if number == 0.0:
        return 0.0
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    scaled = float(f"{number * 10.0**decimals:.9g}")
    mantissa = round(scaled) if up is None else math.ceil(scaled) if up else math.floor(scaled)
    return float(f"{mantissa}e{-decimals}")


def round_outward(low: float, high: float, *, log: bool, digits: int = 1) -> tuple[float, float]:
    """Round the ends of a range outward.

    On a log scale each end keeps its first digits. On a linear scale both ends are rounded to a
    tenth of the width's power of ten, so that a range that is narrow beside its numbers stays so.
    """
    if log:
        return round_to_digits(low, digits, up=False), round_to_digits(high, digits, up=True)
    decimals = 1 - math.floor(math.log10(high - low))
    ends = []
    for number, rounded in ((low, math.floor), (high, math.ceil)):
        scaled = float(f"{number * 10.0**decimals:.15g}")
        ends.append(float(f"{rounded(scaled)}e{-decimals}"))
    return ends[0], ends[1]


def shorten_list(names: Sequence[str], separator: str = ", ") -> str:
    """Join names for a message, with the first ones and the number of the others."""
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more


def find_name_fault(name: str) -> str | None:
    """Return why a search space cannot have a name, or None if it can."""
    if is_name(name):
        return None
    return f"no name of a search space can be {name!r}; --rename COLUMN=NAME gives another"


def rename_parameters(
    parameters: Iterable[RunParameter], selection: RunSelection
) -> tuple[RunParameter, ...]:
    """Return the parameters with their new names.

    Raises:
        UserError: two of them have the same name.
    """
    parameters, new_names = list(parameters), selection.new_names or {}
    counts = Counter(
        new_names.get(entry.dimension.name, entry.dimension.name) for entry in parameters
    )
    if twice := [name for name, count in counts.items() if count > 1]:
        raise user_error(
            got=f"several parameters with the name {', '.join(twice)}",
            expected="a different name for each parameter",
            do="correct --rename",
        )
    return tuple(
        RunParameter(replace(dimension, name=new_names.get(dimension.name, dimension.name)), values)
        for dimension, values in parameters
    )


def refuse_unknown_parameters(selection: RunSelection, known: Sequence[str]) -> None:
    """Raise UserError if the selection names parameters that the runs do not have."""
    names = (*(selection.parameters or ()), *(selection.new_names or ()))
    unknown = [f"{name}{suggest(name, known)}" for name in names if name not in known]
    if unknown:
        raise user_error(
            got=f"no parameter {'; '.join(unknown)}",
            expected="names of its parameters",
            do="correct --parameters or --rename",
        )


def split_words(name: str) -> set[str]:
    """Split a name into its lower-case words."""
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def parse_number(value: Any) -> float | None:
    """Parse a fact or a cell as a finite number; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or not math.isfinite(number) else number
