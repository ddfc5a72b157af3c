"""The narrowing of the focused-sweep plan, for comparison: it believes every pattern among the high performers.

A reconstruction: of the plan its proposal is known, not the rule behind it. These rules give that proposal, are the same for
every table, and use nothing but what the plan tabulates:

    all winners agree      the value is fixed                                                                       (1)
    range                  the bin with the best mean of the metric, as far as winners reach in it, a quarter       (2)
                           more on either side (log: by the factor 5/4), to one significant digit
    numbers to choose      those that occur among the winners                                                       (3)
    words to choose        the same, weighted: each winner by its rank (the last 1, the one before 2, ...), in %,   (4)
                           to the next 5
"""

from __future__ import annotations

from dataclasses import replace

from synaptune.analysis.refine.runs import Narrowing, ParameterTest, round_to_digits
from synaptune.search.space.space import Value

WIDEN = 0.25  # beyond the best bin on either side; derived: fits the plan's 8e-8..4e-7
WEIGHT_STEP = 5.0  # to which weights are rounded [%]; derived: fits the plan's 65/35


def apply_plan_rule(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """The plan's proposal for a parameter; bounded: within its range before, as nothing else is valid."""
    dimension, agreed = test.parameter.dimension, set(test.winning_values)
    if len(agreed) == 1:
        return Narrowing(
            None, test.winning_values[0], f"all {len(test.winning_values)} high performers agree"
        )  # eq. (1)
    if dimension.scale != "categorical":
        return (
            _plan_range(test, maximize=maximize, bounded=bounded)
            if test.edges
            else Narrowing(dimension, None, "few integers: unchanged")
        )
    kept = tuple(value for value in dimension.choices if value in agreed)
    if not any(isinstance(value, str) for value in dimension.choices):  # eq. (3)
        if kept == dimension.choices:
            return Narrowing(
                dimension, None, "every value occurs among the high performers: unchanged"
            )
        return Narrowing(
            replace(dimension, choices=kept, start=None),
            None,
            f"{_join_values(kept)} occur among the high performers",
        )
    weights = _rank_weights(test, kept)
    after = replace(dimension, choices=kept, weights=weights, start=None)
    counts = " against ".join(
        str(sum(value == choice for value in test.winning_values)) for choice in kept
    )
    return Narrowing(after, None, f"{counts} high performers, weighted by their rank")


def _plan_range(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """Eq. (2)."""
    dimension, numbers = test.parameter.dimension, [float(value) for value in test.winning_values]
    held = [
        (group.mean, place)
        for place, group in enumerate(test.groups)
        if group.winners and group.mean is not None
    ]
    _, place = max(held) if maximize else min(held)
    low, high = max(test.edges[place], min(numbers)), min(test.edges[place + 1], max(numbers))
    if dimension.scale == "log":
        low, high = low / (1.0 + WIDEN), high * (1.0 + WIDEN)
    else:
        low, high = low - WIDEN * (high - low), high + WIDEN * (high - low)
    low, high = round_to_digits(low, 1), round_to_digits(high, 1)
    if dimension.integer:
        low, high = float(round(low)), float(round(high))
    if bounded:
        low, high = max(low, dimension.low), min(high, dimension.high)
    label = test.groups[place].label
    if not low < high:
        return Narrowing(
            dimension, None, f"best mean at {label}, which rounds to nothing: unchanged"
        )
    after = replace(dimension, low=low, high=high, start=None)
    return Narrowing(
        after,
        None,
        f"best mean at {label}, high performers from {min(numbers):.3g}; a quarter more on either side",
    )


def _rank_weights(test: ParameterTest, kept: tuple[Value, ...]) -> tuple[float, ...]:
    """Eq. (4); the largest takes what rounding leaves."""
    count = len(test.winning_values)
    points = [
        sum(count - rank for rank, value in enumerate(test.winning_values) if value == choice)
        for choice in kept
    ]
    weights = [
        max(WEIGHT_STEP, WEIGHT_STEP * round(100.0 * point / sum(points) / WEIGHT_STEP))
        for point in points
    ]
    weights[weights.index(max(weights))] += 100.0 - sum(weights)
    return tuple(weights)


def _join_values(values: tuple[Value, ...]) -> str:
    return ", ".join(map(str, values))
