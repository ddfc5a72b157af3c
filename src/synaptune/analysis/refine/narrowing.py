"""Narrowing of a parameter that a test supports, to the values of its high performers."""

from __future__ import annotations

from dataclasses import replace

from synaptune.analysis.refine.runs import Narrowing, ParameterTest, round_outward
from synaptune.core.parameters import constant
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import make_key

MARGIN = constant(
    "refine.margin",
    0.1,
    meaning="margin on either side, as a share of the winners' width",
    source="chosen: room for winners not yet run",
)
_MIN_GAIN = 0.1  # share of a range's width that a narrowing has to remove at least


def explain_unsupported(test: ParameterTest) -> str:
    """Explain why a parameter is not narrowed, with the pattern of its high performers."""
    from scipy.stats import binomtest

    values = test.winning_values
    if test.p_position is not None:
        low, high = min(map(float, values)), max(map(float, values))
        return (
            f"kept wide: high performers from {low:.3g} to {high:.3g}, but success by bin and by "
            "position differs no more than by chance"
        )
    counts = " against ".join(str(group.winners) for group in test.groups)
    binomial = ""
    if len(test.groups) == 2:
        first = test.groups[0]
        share = first.runs / sum(group.runs for group in test.groups)
        p = binomtest(first.winners, len(values), share).pvalue
        binomial = f" (binomial p = {p:.2f} for {100 * share:.0f} % of the runs)"
    return f"kept wide: {counts} high performers{binomial}, which chance explains"


def narrow(test: ParameterTest, winners: int) -> Narrowing:
    """Narrow a parameter whose test supports it; `winners` is the number of high performers."""
    dimension = test.parameter.dimension
    values = {make_key(value): value for value in test.winning_values}
    has_untried = dimension.scale == "categorical" and not all(group.runs for group in test.groups)
    if len(values) == 1 and not has_untried:
        (value,) = values.values()
        return Narrowing(None, value, f"all {winners} high performers agree")
    return _weight_choices(test) if dimension.scale == "categorical" else _tighten_range(test)


def _weight_choices(test: ParameterTest) -> Narrowing:
    """Drop and weight choices by their success rate.

    A choice is dropped if the interval of its success rate lies below the rate of all runs. The
    others are weighted by their rates (Laplace's estimate). A choice without runs gets the rate of
    all runs, since there is no evidence against it.
    """
    runs = sum(group.runs for group in test.groups)
    overall_rate = sum(group.winners for group in test.groups) / runs
    pairs = list(zip(test.values, test.groups, strict=True))
    remaining = [(value, group) for value, group in pairs if group.high >= overall_rate]
    dropped = [group.label for group in test.groups if group.high < overall_rate]
    without = ""
    if dropped:
        limit = f"{100 * overall_rate:.0f} % of all runs"
        without = f", without {', '.join(dropped)} (interval below the {limit})"
    if len(remaining) == 1:
        return Narrowing(None, remaining[0][0], f"success depends on the value{without}")
    rates = [
        (group.winners + 1) / (group.runs + 2) if group.runs else overall_rate
        for _, group in remaining
    ]
    weights = tuple(float(max(1, round(100 * rate / sum(rates)))) for rate in rates)
    choices = tuple(value for value, _ in remaining)
    after = replace(
        test.parameter.dimension, scale="categorical", choices=choices, weights=weights, start=None
    )
    reason = f"success depends on the value: weighted by success rate{without}"
    return Narrowing(after, None, reason)


def _tighten_range(test: ParameterTest) -> Narrowing:
    """Narrow a range to the high performers with a margin, within the present range."""
    dimension = test.parameter.dimension
    units = [dimension.to_unit(value) for value in test.winning_values]
    margin = MARGIN * (max(units) - min(units))
    low, high = (
        float(dimension.to_value(min(max(unit, 0.0), 1.0)))
        for unit in (min(units) - margin, max(units) + margin)
    )
    if not dimension.integer:
        low, high = round_outward(low, high, log=dimension.scale == "log", digits=2)
        low, high = max(low, dimension.low), min(high, dimension.high)
    if dimension.to_unit(high) - dimension.to_unit(low) > 1.0 - _MIN_GAIN:
        return Narrowing(
            dimension,
            None,
            "kept: success depends on it, but high performers cover nearly the whole range",
        )
    values = [float(value) for value in test.winning_values]
    return Narrowing(
        replace(dimension, low=low, high=high, start=None),
        None,
        f"high performers from {min(values):.3g} to {max(values):.3g}, and {100 * MARGIN:.0f} % on "
        "either side",
    )


def make_entry(dimension: Dimension) -> dict[str, object]:
    """Convert a dimension to an entry of a search-space file."""
    if dimension.scale == "categorical":
        weights = [
            int(weight) if float(weight).is_integer() else weight for weight in dimension.weights
        ]
        return {"choices": list(dimension.choices), **({"weights": weights} if weights else {})}
    low, high = (
        int(end) if dimension.integer else float(end) for end in (dimension.low, dimension.high)
    )
    return {
        "low": low,
        "high": high,
        # Without the key an entry keeps the declared scale.
        **({} if dimension.scale == "decay" else {"log": dimension.scale == "log"}),
        **({"integer": True} if dimension.integer else {}),
        **({"step": dimension.step} if dimension.step > 1 else {}),
    }
