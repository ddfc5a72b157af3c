"""Ablation between the defaults and the optimum, one parameter at a time.

    reverted    the optimum with one parameter at its default: its worth at the optimum
    alone       the defaults with one parameter at its tuned value: its worth by itself

The two differ where parameters interact. Runs on the same seed form pairs (analysis/compare.py).
Comparisons with few pairs share one spread, which supposes that the noise of a paired difference is
that of any other. The p-values of all comparisons of an ablation, in both directions, are adjusted
together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synaptune.analysis.compare import compare, holm, pool_spread
from synaptune.analysis.ranking import rescore_study
from synaptune.analysis.results import AblationRow, Comparison
from synaptune.analysis.validation import find_validated_pair
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.space.values import Value, is_same, make_key
from synaptune.search.trial import find_best
from synaptune.study.database import keys as schema
from synaptune.study.reader import ABLATION, VALIDATION, StudySnapshot

METRIC = "test_perplexity"
# Pairs below which the spread is pooled over the comparisons; chosen: the five of a validation
# stand alone.
POOLED_BELOW = 5


class Endpoints(NamedTuple):
    """The two points that an ablation compares, in the space of the searched parameters."""

    space: Space
    defaults: UnitPoint
    tuned: UnitPoint


class AblationPoints(NamedTuple):
    """The points of an ablation.

    `reverted` and `alone` map a parameter's name to a point. They hold the parameters whose tuned
    value differs from the default.
    """

    defaults: UnitPoint
    tuned: UnitPoint
    reverted: Mapping[str, UnitPoint]
    alone: Mapping[str, UnitPoint]

    def as_list(self) -> list[UnitPoint]:
        """Return every point in a fixed order."""
        return [self.defaults, self.tuned, *self.reverted.values(), *self.alone.values()]


def find_endpoints(snapshot: StudySnapshot) -> Endpoints | None:
    """Find the endpoints of a study's ablation.

    They are the two points that the validation compared. Without a validation they are the start
    and the best trial of the last search. If the validation was repeated for a later best, that
    later best counts.

    Returns:
        The endpoints; None if the study has neither a validation nor a best trial.
    """
    compared = find_validated_pair(snapshot)
    if compared is not None:
        return Endpoints(snapshot.spaces[VALIDATION], compared[0].unit, compared[1].unit)
    best = find_best(rescore_study(snapshot).search_trials, snapshot.maximize)
    if best is None:
        return None
    space = snapshot.spaces[snapshot.searches[-1]]
    stored = read_stored_start(snapshot, space.names)
    return None if stored is None else Endpoints(space, space.to_unit(stored), best.unit)


def read_stored_start(snapshot: StudySnapshot, names: Sequence[str]) -> dict[str, Value] | None:
    """Read the values at which a search started; None unless all are stored."""
    keys = {name: f"{schema.START_PREFIX}{name}" for name in names}
    if not keys or not all(key in snapshot.configuration for key in keys.values()):
        return None
    return {name: snapshot.configuration[key] for name, key in keys.items()}


def plan_points(endpoints: Endpoints) -> AblationPoints:
    """Return the points that an ablation between two endpoints has to run."""
    space, defaults, tuned = endpoints
    moved = [
        (name, index)
        for index, name in enumerate(space.names)
        if not is_same(space.to_values(defaults)[name], space.to_values(tuned)[name])
    ]

    def replace_each(unit: UnitPoint, other: UnitPoint) -> dict[str, UnitPoint]:
        return {name: (*unit[:i], other[i], *unit[i + 1 :]) for name, i in moved}

    return AblationPoints(
        defaults, tuned, replace_each(tuned, defaults), replace_each(defaults, tuned)
    )


def choose_reverted(
    endpoints: Endpoints, count: int, effects: Mapping[str, float]
) -> dict[str, UnitPoint]:
    """Return the reverted points of the parameters that an ablation of a small budget runs.

    Args:
        endpoints: start and optimum.
        count: largest number of parameters.
        effects: of a screening, by parameter: the largest come first. Without one, those come first
            that moved farthest as a share of their range.
    """
    space, defaults, tuned = endpoints
    moves = dict(zip(space.names, np.abs(np.subtract(tuned, defaults)).tolist(), strict=True))
    reverted = plan_points(endpoints).reverted
    names = sorted(reverted, key=lambda name: (-abs(effects.get(name, 0.0)), -moves[name]))
    return {name: reverted[name] for name in names[:count]}


def compute_ablation(snapshot: StudySnapshot) -> list[AblationRow]:
    """Compute the worth of each parameter of the optimum.

    Returns:
        One row a parameter with a comparison, sorted by the loss of reverting it, largest first.
        Empty if no ablation has begun. A comparison with fewer than two complete pairs is None.
    """
    endpoints = find_endpoints(snapshot)
    if endpoints is None or not snapshot.get_phase_trials(ABLATION):
        return []
    runs, points = _collect_runs(snapshot), plan_points(endpoints)
    defaults, tuned = map(endpoints.space.to_values, (endpoints.defaults, endpoints.tuned))

    def pair_points(*units: UnitPoint) -> tuple[list[float], list[float]]:
        before, after = (runs.get(make_key(endpoints.space.to_values(unit)), {}) for unit in units)
        seeds = sorted(before.keys() & after.keys())
        return [before[seed] for seed in seeds], [after[seed] for seed in seeds]

    pairs: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for name in points.reverted:
        pairs[name, "reverted"] = pair_points(points.reverted[name], points.tuned)
        pairs[name, "alone"] = pair_points(points.defaults, points.alone[name])
    comparisons = {
        (name, way): comparison
        for way in ("reverted", "alone")
        for name, comparison in _compare_pairs(
            {name: pairs[name, way] for name in points.reverted}
        ).items()
    }
    p_values = {key: entry.p for key, entry in comparisons.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    rows = [
        AblationRow(
            name,
            defaults[name],
            tuned[name],
            comparisons.get((name, "reverted")),
            comparisons.get((name, "alone")),
            adjusted.get((name, "reverted")),
            adjusted.get((name, "alone")),
        )
        for name in points.reverted
        if (name, "reverted") in comparisons or (name, "alone") in comparisons
    ]
    return sorted(
        rows, key=lambda row: -math.inf if row.reverted is None else row.reverted.mean, reverse=True
    )


def _compare_pairs(
    pairs: Mapping[str, tuple[list[float], list[float]]],
) -> dict[str, Comparison]:
    """Compare the pairs of each parameter, which share one side; leave out single pairs."""
    whole = {name: pair for name, pair in pairs.items() if len(pair[0]) > 1}
    few = [pair for pair in whole.values() if len(pair[0]) < POOLED_BELOW]
    spread = pool_spread(few) if len(few) > 1 else None
    return {
        name: compare(*pair, spread=spread if len(pair[0]) < POOLED_BELOW else None)
        for name, pair in whole.items()
    }


def _collect_runs(snapshot: StudySnapshot) -> dict[str, dict[int, float]]:
    """Collect the metric of the complete validation and ablation runs by point and seed.

    A value that is not a positive finite number is left out.
    """
    runs: dict[str, dict[int, float]] = {}
    for trial in (*snapshot.get_phase_trials(VALIDATION), *snapshot.get_phase_trials(ABLATION)):
        value = trial.facts.get(METRIC) if trial.state == "complete" else None
        if isinstance(value, int | float) and math.isfinite(value) and value > 0.0:
            runs.setdefault(make_key(trial.values), {})[trial.facts["seed"]] = float(value)
    return runs
