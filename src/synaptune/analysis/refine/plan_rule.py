"""The narrowing rule of the focused-sweep plan, for comparison. It applies no test.

The rule is a reconstruction: the plan states its proposal but not how it was derived. The rule
yields that proposal, is the same for every table and uses only what the plan tabulates:

    all winners agree   the value is fixed                                                    (1)
    range               the bin with the best mean of the metric, cut to its winners, widened (2)
                        by a quarter on either side (log: by the factor 5/4), to one
                        significant digit
    numeric choices     those that occur among the winners                                    (3)
    text choices        those that occur among the winners, weighted by the ranks of their    (4)
                        winners (last 1, next 2, ...) [%], to the next 5
"""

from __future__ import annotations

from dataclasses import replace

from synaptune.analysis.refine.runs import Narrowing, ParameterTest, round_to_digits
from synaptune.search.space.values import Value

WIDEN = 0.25  # beyond the best bin on either side; derived: fits the plan's 8e-8..4e-7
WEIGHT_STEP = 5.0  # to which weights are rounded [%]; derived: fits the plan's 65/35


def apply_plan_rule(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """Narrow a parameter as the plan does.

    Args:
        test: the groups and winners of the parameter.
        maximize: whether a larger metric is better.
        bounded: whether values outside the present range are invalid.
    """
    dimension, winning_values = test.parameter.dimension, set(test.winning_values)
    if len(winning_values) == 1:
        return Narrowing(
            None, test.winning_values[0], f"all {len(test.winning_values)} high performers agree"
        )  # eq. (1)
    if dimension.scale != "categorical":
        return (
            _plan_range(test, maximize=maximize, bounded=bounded)
            if test.edges
            else Narrowing(dimension, None, "few integers: unchanged")
        )
    choices = tuple(value for value in dimension.choices if value in winning_values)
    if not any(isinstance(value, str) for value in dimension.choices):  # eq. (3)
        if choices == dimension.choices:
            return Narrowing(
                dimension, None, "every value occurs among the high performers: unchanged"
            )
        return Narrowing(
            replace(dimension, choices=choices, start=None),
            None,
            f"{_join_values(choices)} occur among the high performers",
        )
    weights = _rank_weights(test, choices)
    after = replace(dimension, choices=choices, weights=weights, start=None)
    counts = " against ".join(
        str(sum(value == choice for value in test.winning_values)) for choice in choices
    )
    return Narrowing(after, None, f"{counts} high performers, weighted by their rank")


def _plan_range(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """Narrow a range, eq. (2)."""
    dimension, numbers = test.parameter.dimension, [float(value) for value in test.winning_values]
    candidates = [
        (group.mean, best_bin)
        for best_bin, group in enumerate(test.groups)
        if group.winners and group.mean is not None
    ]
    _, best_bin = max(candidates) if maximize else min(candidates)
    low, high = max(test.edges[best_bin], min(numbers)), min(test.edges[best_bin + 1], max(numbers))
    if dimension.scale == "log":
        low, high = low / (1.0 + WIDEN), high * (1.0 + WIDEN)
    else:
        low, high = low - WIDEN * (high - low), high + WIDEN * (high - low)
    low, high = round_to_digits(low, 1), round_to_digits(high, 1)
    if dimension.integer:
        low, high = float(round(low)), float(round(high))
    if bounded:
        low, high = max(low, dimension.low), min(high, dimension.high)
    label = test.groups[best_bin].label
    if not low < high:
        return Narrowing(
            dimension, None, f"best mean at {label}, which rounds to nothing: unchanged"
        )
    after = replace(dimension, low=low, high=high, start=None)
    return Narrowing(
        after,
        None,
        f"best mean at {label}, high performers from {min(numbers):.3g}; a quarter more on either "
        "side",
    )


def _rank_weights(test: ParameterTest, choices: tuple[Value, ...]) -> tuple[float, ...]:
    """Compute the weights, eq. (4); the largest one takes the rounding remainder."""
    count = len(test.winning_values)
    points = [
        sum(count - rank for rank, value in enumerate(test.winning_values) if value == choice)
        for choice in choices
    ]
    weights = [
        max(WEIGHT_STEP, WEIGHT_STEP * round(100.0 * point / sum(points) / WEIGHT_STEP))
        for point in points
    ]
    weights[weights.index(max(weights))] += 100.0 - sum(weights)
    return tuple(weights)


def _join_values(values: tuple[Value, ...]) -> str:
    return ", ".join(map(str, values))
