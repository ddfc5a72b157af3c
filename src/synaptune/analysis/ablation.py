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
from synaptune.analysis.ranking import ranked
from synaptune.analysis.results import Ablated, Comparison
from synaptune.analysis.validation import validated
from synaptune.search.space.space import Space, Unit, Value
from synaptune.search.trial import Trial, best_of
from synaptune.study.database import keys as schema
from synaptune.study.reader import ABLATION, VALIDATION, Record

METRIC = "test_perplexity"


class Ends(NamedTuple):
    """Between what an ablation goes: points of a space that holds the searched parameters."""

    space: Space
    defaults: Unit
    tuned: Unit


class Points(NamedTuple):
    """The points of an ablation; reverted and alone by parameter, for those whose tuned value is another than the default."""

    defaults: Unit
    tuned: Unit
    reverted: Mapping[str, Unit]
    alone: Mapping[str, Unit]

    def all(self) -> list[Unit]:
        """Every point, in a fixed order."""
        return [self.defaults, self.tuned, *self.reverted.values(), *self.alone.values()]


def ends(record: Record) -> Ends | None:
    """The ends that a study has: what its validation compared, else the start and the best of its last search; null without either.

    A validation that was made again for a later best counts with its last one.
    """
    compared = validated(record)
    if compared is not None:
        return Ends(record.spaces[VALIDATION], compared[0].unit, compared[1].unit)
    best = best_of(ranked(record).searched, record.maximize)
    if best is None:
        return None
    space = record.spaces[record.searches[-1]]
    stored = {name: record.configuration.get(f"{schema.START}{name}") for name in space.names}
    if any(value is None for value in stored.values()):
        return None
    return Ends(space, space.unit(stored), best.unit)  # type: ignore[arg-type]


def points(ends: Ends) -> Points:
    """What an ablation between two ends has to run."""
    space, defaults, tuned = ends
    before, after = space.values(defaults), space.values(tuned)
    moved = [(index, name) for index, name in enumerate(space.names) if before[name] != after[name]]
    reverted = {name: _with(tuned, index, defaults) for index, name in moved}
    return Points(defaults, tuned, reverted, {name: _with(defaults, index, tuned) for index, name in moved})


def _with(unit: Unit, index: int, other: Unit) -> Unit:
    return (*unit[:index], other[index], *unit[index + 1 :])


def ablated(record: Record) -> list[Ablated]:
    """What each parameter of the optimum is worth, the largest loss without it first; empty when no ablation has begun.

    A comparison with fewer than two whole pairs is null.
    """
    between = ends(record)
    if between is None or not record.phase(ABLATION):
        return []
    runs, wanted = _runs(record), points(between)
    defaults, tuned = (between.space.values(unit) for unit in (between.defaults, between.tuned))

    def compared(before: Unit, after: Unit) -> Comparison | None:
        first, second = (runs.get(_key(between.space.values(unit)), {}) for unit in (before, after))
        seeds = sorted(first.keys() & second.keys())
        return compare([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if len(seeds) > 1 else None

    found = [
        (name, compared(wanted.reverted[name], wanted.tuned), compared(wanted.defaults, wanted.alone[name])) for name in wanted.reverted
    ]
    adjusted = _adjusted([comparison for _, *both in found for comparison in both])
    rows = [
        Ablated(name, defaults[name], tuned[name], reverted, alone, *adjusted[2 * index : 2 * index + 2])
        for index, (name, reverted, alone) in enumerate(found)
    ]
    return sorted(rows, key=lambda row: -math.inf if row.reverted is None else row.reverted.mean, reverse=True)


def _adjusted(comparisons: Sequence[Comparison | None]) -> list[float | None]:
    """The p-values of the t tests, adjusted for all that could be made."""
    made = [index for index, comparison in enumerate(comparisons) if comparison is not None]
    values = dict(zip(made, holm([comparison.p for comparison in comparisons if comparison is not None]), strict=True))
    return [values.get(index) for index in range(len(comparisons))]


def _runs(record: Record) -> dict[Any, dict[int, float]]:
    """The metric of the complete runs of the validation and the ablation, by point and seed."""
    runs: dict[Any, dict[int, float]] = {}
    for trial in (*record.phase(VALIDATION), *record.phase(ABLATION)):
        value = _metric(trial)
        if value is not None:
            runs.setdefault(_key(trial.values), {}).setdefault(trial.facts["seed"], value)
    return runs


def _metric(trial: Trial) -> float | None:
    """Null for a run that is not whole, or whose perplexity is no positive number."""
    value = trial.facts.get(METRIC) if trial.state == "complete" else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0.0 else None


def _key(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(values.items()))
