"""One parameter at a time between the defaults and the optimum: what an ablation runs, and what its runs say.

    reverted    the optimum, with one parameter back at its default: what this one is worth there
    alone       the defaults, with one parameter at its tuned value: what it brings by itself

The two differ where parameters act together. Runs on the same seed are pairs (analysis/compare.py); all comparisons of an ablation,
both ways, are corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synaptune.analysis.compare import compare, holm
from synaptune.analysis.ranking import rescore_study
from synaptune.analysis.results import AblationRow, Comparison
from synaptune.analysis.validation import find_validated_pair
from synaptune.search.space.space import Space, UnitPoint, Value
from synaptune.search.trial import Trial, find_best
from synaptune.study.database import keys as schema
from synaptune.study.reader import ABLATION, VALIDATION, StudySnapshot

METRIC = "test_perplexity"


class Endpoints(NamedTuple):
    """Between what an ablation goes: points of a space that holds the searched parameters."""

    space: Space
    defaults: UnitPoint
    tuned: UnitPoint


class AblationPoints(NamedTuple):
    """The points of an ablation; reverted and alone by parameter, for those whose tuned value is another than the default."""

    defaults: UnitPoint
    tuned: UnitPoint
    reverted: Mapping[str, UnitPoint]
    alone: Mapping[str, UnitPoint]

    def as_list(self) -> list[UnitPoint]:
        """Every point, in a fixed order."""
        return [self.defaults, self.tuned, *self.reverted.values(), *self.alone.values()]


def find_endpoints(snapshot: StudySnapshot) -> Endpoints | None:
    """The ends that a study has: what its validation compared, else the start and the best of its last search; null without either.

    A validation that was made again for a later best counts with its last one.
    """
    compared = find_validated_pair(snapshot)
    if compared is not None:
        return Endpoints(snapshot.spaces[VALIDATION], compared[0].unit, compared[1].unit)
    best = find_best(rescore_study(snapshot).search_trials, snapshot.maximize)
    if best is None:
        return None
    space = snapshot.spaces[snapshot.searches[-1]]
    stored = {
        name: snapshot.configuration.get(f"{schema.START_PREFIX}{name}") for name in space.names
    }
    if any(value is None for value in stored.values()):
        return None
    return Endpoints(space, space.to_unit(stored), best.unit)  # type: ignore[arg-type]


def plan_points(endpoints: Endpoints) -> AblationPoints:
    """What an ablation between two ends has to run."""
    space, defaults, tuned = endpoints
    before, after = space.to_values(defaults), space.to_values(tuned)
    moved = [(index, name) for index, name in enumerate(space.names) if before[name] != after[name]]
    reverted = {name: _replace_coordinate(tuned, index, defaults) for index, name in moved}
    return AblationPoints(
        defaults,
        tuned,
        reverted,
        {name: _replace_coordinate(defaults, index, tuned) for index, name in moved},
    )


def _replace_coordinate(unit: UnitPoint, index: int, other: UnitPoint) -> UnitPoint:
    return (*unit[:index], other[index], *unit[index + 1 :])


def compute_ablation(snapshot: StudySnapshot) -> list[AblationRow]:
    """What each parameter of the optimum is worth, the largest loss without it first; empty when no ablation has begun.

    A comparison with fewer than two whole pairs is null.
    """
    between = find_endpoints(snapshot)
    if between is None or not snapshot.get_phase_trials(ABLATION):
        return []
    runs, wanted = _collect_runs(snapshot), plan_points(between)
    defaults, tuned = (between.space.to_values(unit) for unit in (between.defaults, between.tuned))

    def compare_points(before: UnitPoint, after: UnitPoint) -> Comparison | None:
        first, second = (
            runs.get(_key(between.space.to_values(unit)), {}) for unit in (before, after)
        )
        seeds = sorted(first.keys() & second.keys())
        return (
            compare([first[seed] for seed in seeds], [second[seed] for seed in seeds])
            if len(seeds) > 1
            else None
        )

    found = [
        (
            name,
            compare_points(wanted.reverted[name], wanted.tuned),
            compare_points(wanted.defaults, wanted.alone[name]),
        )
        for name in wanted.reverted
    ]
    adjusted = _adjust_p_values([comparison for _, *both in found for comparison in both])
    rows = [
        AblationRow(
            name, defaults[name], tuned[name], reverted, alone, *adjusted[2 * index : 2 * index + 2]
        )
        for index, (name, reverted, alone) in enumerate(found)
    ]
    return sorted(
        rows, key=lambda row: -math.inf if row.reverted is None else row.reverted.mean, reverse=True
    )


def _adjust_p_values(comparisons: Sequence[Comparison | None]) -> list[float | None]:
    """The p-values of the t tests, adjusted for all that could be made."""
    made = [index for index, comparison in enumerate(comparisons) if comparison is not None]
    values = dict(
        zip(
            made,
            holm([comparison.p for comparison in comparisons if comparison is not None]),
            strict=True,
        )
    )
    return [values.get(index) for index in range(len(comparisons))]


def _collect_runs(snapshot: StudySnapshot) -> dict[Any, dict[int, float]]:
    """The metric of the complete runs of the validation and the ablation, by point and seed."""
    runs: dict[Any, dict[int, float]] = {}
    for trial in (*snapshot.get_phase_trials(VALIDATION), *snapshot.get_phase_trials(ABLATION)):
        value = _read_metric(trial)
        if value is not None:
            runs.setdefault(_key(trial.values), {}).setdefault(trial.facts["seed"], value)
    return runs


def _read_metric(trial: Trial) -> float | None:
    """Null for a run that is not whole, or whose perplexity is no positive number."""
    value = trial.facts.get(METRIC) if trial.state == "complete" else None
    return (
        float(value)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0.0
        else None
    )


def _key(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(values.items()))
