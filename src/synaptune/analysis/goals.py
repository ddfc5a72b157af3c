"""The goals of a tuning: each metric of the plan at the start and at the best, with its threshold.

    change  x = 100 (mean after / mean before - 1)     [%]     (1)

A metric has degraded if the paired 95 % interval of its difference lies on the worse side of zero.
A metric that the runs do not have (no recall rows, one expert) has no row. Perplexity is that of
the test split, the others are of the validation split.
Source: thresholds of perplexity and Gini: the plan's gate; all others chosen: a change that a
person would notice, twice that as the stretch goal, and no harm where less is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from synaptune.analysis.compare import compute_interval
from synaptune.search.trial import Trial

OVERFIT_RATIO = 1.1  # test over validation perplexity that is flagged; chosen: the plan's 10 %


class GoalResult(NamedTuple):
    """A metric of the plan at the start and at the best.

    Attributes:
        metric: name of the metric.
        label: name for a reader.
        start: mean at the start.
        best: mean of the best.
        change: relative change [%]; None if the start is zero.
        threshold: change that is enough [%].
        stretch: change to hope for [%].
        met: whether the threshold is met; with a threshold of 0, whether it has not degraded.
        stretch_met: whether the stretch goal is met; None if the metric is zero on both sides,
            where less is better: nothing can improve.
        degraded: whether the metric is significantly worse.
    """

    metric: str
    label: str
    start: float
    best: float
    change: float | None
    threshold: float
    stretch: float
    met: bool
    stretch_met: bool | None
    degraded: bool


class Goal(NamedTuple):
    """A metric with what a tuning should reach.

    Attributes:
        metric: name of the fact of a run.
        label: name for a reader.
        direction: -1 if smaller is better, +1 if larger is better.
        threshold: least gain [%].
        stretch: gain to hope for [%].
    """

    metric: str
    label: str
    direction: int
    threshold: float
    stretch: float


GOALS = (
    Goal("test_perplexity", "test perplexity", -1, 10.0, 20.0),
    Goal("val_recall_accuracy", "long-context accuracy", +1, 5.0, 10.0),
    Goal("val_needle_accuracy", "accuracy on a fact in text", +1, 5.0, 10.0),
    Goal("expert_gini", "expert Gini", +1, 10.0, 20.0),
    Goal("expert_dead_fraction", "dead experts", -1, 0.0, 50.0),
    Goal("val_calibration_error", "calibration error", -1, 0.0, 20.0),
)


def check_goals(before: Sequence[Trial], after: Sequence[Trial]) -> list[GoalResult]:
    """Compare the runs of the start and of the best, which are paired by position."""
    results = []
    for goal in GOALS:
        pairs = [
            (float(old.facts[goal.metric]), float(new.facts[goal.metric]))
            for old, new in zip(before, after, strict=True)
            if goal.metric in old.facts and goal.metric in new.facts
        ]
        if len(pairs) >= 2:
            results.append(_check_goal(goal, pairs))
    return results


def _check_goal(goal: Goal, pairs: Sequence[tuple[float, float]]) -> GoalResult:
    start, best = (statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
    change = 100.0 * (best / start - 1.0) if start > 0.0 else None
    gain = None if change is None else goal.direction * change
    if gain is None:  # from zero, the direction alone decides; zero stays best where less is better
        sign = goal.direction * best if best else -goal.direction
        gain = math.copysign(math.inf, sign)
    has_degraded = _has_degraded([goal.direction * (new - old) for old, new in pairs])
    return GoalResult(
        goal.metric,
        goal.label,
        start,
        best,
        change,
        goal.direction * goal.threshold + 0.0,  # no negative zero
        goal.direction * goal.stretch,
        gain >= goal.threshold if goal.threshold else not has_degraded,
        None if start == best == 0.0 and goal.direction < 0 else gain >= goal.stretch,
        has_degraded,
    )


def _has_degraded(gains: Sequence[float]) -> bool:
    return compute_interval(gains).high < 0.0


def find_degraded(goals: Sequence[GoalResult]) -> list[str]:
    """Return the labels of the metrics other than perplexity that have degraded."""
    return [goal.label for goal in goals[1:] if goal.degraded]


def describe_overfit(before: Sequence[Trial], after: Sequence[Trial]) -> str | None:
    """Say that the tuned runs overfit; None if test perplexity is close to validation's."""
    ratios = []
    for runs in (before, after):
        pairs = [
            (run.facts["test_perplexity"], math.exp(run.facts["val_loss"]))
            for run in runs
            if {"test_perplexity", "val_loss"} <= run.facts.keys()
        ]
        if not pairs:
            return None
        ratios.append(statistics.fmean(test / validation for test, validation in pairs))
    if ratios[1] <= OVERFIT_RATIO:
        return None
    return (
        f"test perplexity is {100 * (ratios[1] - 1):z.0f} % above that of the validation split"
        f" (at the start {100 * (ratios[0] - 1):+z.0f} %)"
    )
