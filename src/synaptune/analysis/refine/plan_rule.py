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
from synaptune.search.space.values import Value, is_same, make_key

WIDEN = 0.25  # beyond the best bin on either side; derived: fits the plan's 8e-8..4e-7
WEIGHT_STEP = 5.0  # to which weights are rounded [%]; derived: fits the plan's 65/35


def apply_plan_rule(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """Narrow a parameter as the plan does.

    Args:
        test: the groups and winners of the parameter.
        maximize: whether a larger metric is better.
        bounded: whether values outside the present range are invalid.
    """
    dimension, winning_values = test.parameter.dimension, test.winning_values
    winning_keys = [make_key(value) for value in winning_values]
    if len(set(winning_keys)) == 1:
        reason = f"all {len(winning_values)} high performers agree"
        return Narrowing(None, winning_values[0], reason)  # eq. (1)
    if dimension.scale != "categorical":
        if test.edges:
            return _plan_range(test, maximize=maximize, bounded=bounded)
        return Narrowing(dimension, None, "few integers: unchanged")
    choices = tuple(value for value in dimension.choices if make_key(value) in winning_keys)
    if any(isinstance(value, str) for value in dimension.choices):  # eq. (4)
        after = replace(dimension, choices=choices, weights=_rank_weights(test, choices))
        counts = " against ".join(str(winning_keys.count(make_key(choice))) for choice in choices)
        reason = f"{counts} high performers, weighted by their rank"
    elif len(choices) == len(dimension.choices):  # eq. (3)
        return Narrowing(dimension, None, "every value occurs among the high performers: unchanged")
    else:
        after = replace(dimension, choices=choices)
        labels = [group.label for group in test.groups if group.winners]
        reason = f"{', '.join(labels)} occur among the high performers"
    return Narrowing(replace(after, start=None), None, reason)


def _plan_range(test: ParameterTest, *, maximize: bool, bounded: bool) -> Narrowing:
    """Narrow a range, eq. (2)."""
    dimension, numbers = test.parameter.dimension, [float(value) for value in test.winning_values]
    means = [
        (group.mean, index)
        for index, group in enumerate(test.groups)
        if group.winners and group.mean is not None
    ]
    best = max(means)[1] if maximize else min(means)[1]
    low, high = max(test.edges[best], min(numbers)), min(test.edges[best + 1], max(numbers))
    margin = WIDEN * (high - low)
    low, high = (
        (low / (1.0 + WIDEN), high * (1.0 + WIDEN))
        if dimension.scale == "log"
        else (low - margin, high + margin)
    )
    low, high = round_to_digits(low, 1), round_to_digits(high, 1)
    if dimension.integer:
        low, high = (
            dimension.low + dimension.step * round((end - dimension.low) / dimension.step)
            for end in (low, high)
        )
    if bounded:
        low, high = max(low, dimension.low), min(high, dimension.high)
    label = f"best mean at {test.groups[best].label}"
    if low >= high:
        return Narrowing(dimension, None, f"{label}, whose ends round to one value: unchanged")
    return Narrowing(
        replace(dimension, low=low, high=high, start=None),
        None,
        f"{label}, high performers from {min(numbers):.3g}; a quarter more on either side",
    )


def _rank_weights(test: ParameterTest, choices: tuple[Value, ...]) -> tuple[float, ...]:
    """Compute the weights, eq. (4); the largest one takes the rounding remainder."""
    count = len(test.winning_values)
    points = [
        sum(
            count - rank for rank, value in enumerate(test.winning_values) if is_same(value, choice)
        )
        for choice in choices
    ]
    weights = [
        max(WEIGHT_STEP, WEIGHT_STEP * round(100.0 * point / sum(points) / WEIGHT_STEP))
        for point in points
    ]
    weights[weights.index(max(weights))] += 100.0 - sum(weights)
    return tuple(weights)
