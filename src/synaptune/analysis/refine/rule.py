"""A narrower search space from the runs of an earlier one: where its high performers are, and whether that is more than chance.

For each parameter the question is whether success (being a high performer) depends on it at all:

    choice      p of the winners among the values                        refine_exact.py, eq. (1) or (3)
    range       p = min(1, 2 min(p among bins, p of position))           eq. (1) or (3), and (2)                            (1)
    all         p adjusted for the number of parameters by Holm          analysis/compare.py

and it is narrowed only where the adjusted p says so. Without an effect of any parameter, some parameter is narrowed in at most
5 % of all designs (the tests count it). Runs of an adaptive search are no independent sample: later points lie where earlier ones
were good, so that success goes with whatever moved in the meantime. Within a generation they are drawn alike, so there the labels
are shuffled within generations. What moves together within generations is not told apart: success may depend on its companion.
An optimizer that proposes one run at a time draws no two alike: nothing can be shuffled, and nothing is said of its parameters.

`rule="plan"` narrows as the plan of the focused sweep did, without asking chance (refine_plan.py).
Source: (1) Bonferroni over the two tests; derived.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from synaptune.analysis.compare import holm
from synaptune.analysis.refine.exact_tests import (
    SHUFFLES,
    exact_p,
    group_p,
    position_p,
    rate_interval,
    shuffle_labels,
    split_p,
)
from synaptune.analysis.refine.plan_rule import apply_plan_rule
from synaptune.analysis.refine.runs import (
    Narrowing,
    ParameterTest,
    RunGroup,
    RunParameter,
    RunTable,
    round_to_digits,
)
from synaptune.core.errors import user_error
from synaptune.search.space.file import SpaceFile
from synaptune.search.space.space import Dimension, Value

if TYPE_CHECKING:
    from synaptune.analysis.refine.exact_tests import Labels

Rule = Literal["tested", "plan"]
QUANTILE = 1.0 / 3.0  # best part of the runs that counts as high performers; the plan: 16 of 48
ALPHA = 0.05  # adjusted p that supports a narrowing [probability]; chosen: the usual 5 %
MARGIN = 0.1  # of the winners' width, left on either side; chosen: winners not yet seen
_MIN_GAIN = 0.1  # of a range's width: a smaller narrowing is none
_BIN_COUNTS = (3, 6)  # fewest and most bins at round numbers
_QUARTERS = 4
_UNTESTABLE = "not testable: no generation has both a high performer and another run, so that no labels can be shuffled"


class Proposal(NamedTuple):
    """A parameter before and after; adjusted: its p for the number of parameters; supported: below 5 %."""

    test: ParameterTest
    adjusted_p: float
    supported: bool
    narrowing: Narrowing

    @property
    def is_narrowed(self) -> bool:
        """Whether anything changes."""
        return self.narrowing.after != self.test.parameter.dimension


@dataclass(frozen=True)
class Refinement:
    """threshold: of the metric; winners: number of high performers."""

    runs: RunTable
    rule: Rule
    threshold: float
    winners: int
    proposals: tuple[Proposal, ...]

    def make_space_file(self, name: str) -> SpaceFile:
        """The search space to run next."""
        file = SpaceFile(name)
        for proposal in self.proposals:
            dimension, value = proposal.narrowing.after, proposal.narrowing.fixed
            if dimension is not None:
                file.ranges[dimension.name] = make_entry(dimension)
            elif value is not None:
                file.fixed[proposal.test.parameter.dimension.name] = value
        return file


def refine(
    runs: RunTable,
    *,
    threshold: float | None = None,
    quantile: float | None = None,
    rule: Rule = "tested",
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Refinement:
    """Refine the space of runs.

    threshold: of the metric, from which on a run is a high performer; quantile: the best part of the runs instead (null: a third);
    shuffles, seed: of the labels. Raises UserError when no run, or every run, is a high performer, or nothing varies.
    """
    if not runs.parameters:
        raise user_error(
            got=f"no parameter that varies in {runs.source}",
            expected="at least one",
            do="name its columns with --parameters",
        )
    limit = (
        threshold
        if threshold is not None
        else _choose_threshold(runs, QUANTILE if quantile is None else quantile)
    )
    wins = [score >= limit if runs.maximize else score <= limit for score in runs.scores]
    if not 0 < sum(wins) < len(wins):
        sign = "at least" if runs.maximize else "at most"
        raise user_error(
            got=f"{sum(wins)} of {len(wins)} runs with {runs.metric} {sign} {limit:g}",
            expected="some high performers, and some others",
            do=f"choose another --threshold ({min(runs.scores):g} to {max(runs.scores):g} occur) or --quantile",
        )
    labels = shuffle_labels(wins, runs.strata, seed, shuffles)
    if not (testable := _is_testable(wins, runs.strata)):
        runs = replace(
            runs,
            notes=(
                *runs.notes,
                f"{_UNTESTABLE}; every p is 1 whatever the parameters do (--rule plan asks no test)",
            ),
        )
    found = [_test_parameter(runs, parameter, wins, labels) for parameter in runs.parameters]
    adjusted = holm([entry.p for entry in found])
    proposals = tuple(
        _propose(entry, level, rule, winners=sum(wins), runs=runs, testable=testable)
        for entry, level in zip(found, adjusted, strict=True)
    )
    return Refinement(runs, rule, limit, sum(wins), proposals)


def _is_testable(wins: Sequence[bool], strata: Sequence[int]) -> bool:
    """Whether any runs that were drawn alike differ in their success."""
    return len({*zip(strata, wins, strict=True)}) > len(set(strata))


def _choose_threshold(runs: RunTable, quantile: float) -> float:
    if not 0.0 < quantile < 1.0:
        raise user_error(
            got=f"--quantile {quantile:g}", expected="a number between 0 and 1", do="correct it"
        )
    ordered = sorted(runs.scores, reverse=runs.maximize)
    return ordered[max(1, round(quantile * len(ordered))) - 1]


def _test_parameter(
    runs: RunTable, parameter: RunParameter, wins: Sequence[bool], labels: Labels
) -> ParameterTest:
    edges = make_bins(parameter)
    values = () if edges else _group_values(parameter)
    codes = [
        bisect.bisect_right(edges[1:-1], float(value)) if edges else values.index(value)
        for value in parameter.values
    ]
    names = (
        [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
        if edges
        else [f"{value}" for value in values]
    )
    groups = []
    for code, name in enumerate(names):
        members = [row for row, other in enumerate(codes) if other == code]
        won = sum(wins[row] for row in members)
        mean = statistics.fmean(runs.scores[row] for row in members) if members else None
        groups.append(
            RunGroup(
                name,
                len(members),
                won,
                won / max(len(members), 1),
                *rate_interval(won, len(members)),
                mean,
            )
        )
    free = len(set(runs.strata)) == 1
    p_groups = (
        exact_p([group.winners for group in groups], [group.runs for group in groups])
        if free
        else None
    )
    p_groups = group_p(codes, labels, runs.strata) if p_groups is None else p_groups
    ranged = parameter.dimension.scale != "categorical"
    p_position = (
        position_p([float(value) for value in parameter.values], labels, runs.strata)
        if ranged
        else None
    )
    p = p_groups if p_position is None else min(1.0, 2.0 * min(p_groups, p_position))  # eq. (1)
    order = sorted(
        (row for row, won in enumerate(wins) if won),
        key=lambda row: runs.scores[row],
        reverse=runs.maximize,
    )
    winning = tuple(parameter.values[row] for row in order)
    return ParameterTest(parameter, tuple(groups), edges, values, winning, p_groups, p_position, p)


def _group_values(parameter: RunParameter) -> tuple[Value, ...]:
    """Every choice, run or not; of integers the values that occur, in their order."""
    return parameter.dimension.choices or tuple(sorted(set(parameter.values), key=float))


def make_bins(parameter: RunParameter) -> tuple[float, ...]:
    """Edges of bins over the values of a range: at 1, 3, 10, ... (or at decades) on a log scale where that makes 3 to 6, else with
    equally many runs; empty for choices, and for integers of few values. They depend on no metric, so that the tests are exact."""
    dimension = parameter.dimension
    if dimension.scale == "categorical" or (
        dimension.integer and len(set(parameter.values)) <= _BIN_COUNTS[1]
    ):
        return ()
    values = sorted(map(float, parameter.values))
    if dimension.scale == "log":
        low, high = round_to_digits(values[0], 1, up=False), round_to_digits(values[-1], 1, up=True)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 3), (1,)):
            inner = [
                edge
                for power in powers
                for step in steps
                if low < (edge := float(f"{step}e{power}")) < high
            ]
            if _BIN_COUNTS[0] <= len(inner) + 1 <= _BIN_COUNTS[1]:
                return (low, *inner, high)
    low, high = round_to_digits(values[0], 3, up=False), round_to_digits(values[-1], 3, up=True)
    cuts = [values[len(values) * part // _QUARTERS] for part in range(1, _QUARTERS)]
    return (
        low,
        *sorted({edge for cut in cuts if low < (edge := round_to_digits(cut, 3)) < high}),
        high,
    )


def _propose(
    test: ParameterTest,
    adjusted: float,
    rule: Rule,
    *,
    winners: int,
    runs: RunTable,
    testable: bool,
) -> Proposal:
    supported = adjusted < ALPHA
    if rule == "plan":
        return Proposal(
            test,
            adjusted,
            supported,
            apply_plan_rule(test, maximize=runs.maximize, bounded=runs.bounded),
        )
    why = _explain_unsupported(test) if testable else f"kept wide: {_UNTESTABLE}"
    change = _narrow(test, winners) if supported else Narrowing(test.parameter.dimension, None, why)
    return Proposal(test, adjusted, supported, change)


def _explain_unsupported(test: ParameterTest) -> str:
    """Why a parameter stays as wide as it was, with what looks like a pattern all the same."""
    values = test.winning_values
    if test.p_position is not None:
        seen = (
            f"high performers from {min(map(float, values)):.3g} to {max(map(float, values)):.3g}"
        )
        return (
            f"kept wide: {seen}, but success by bin and by position differs no more than by chance"
        )
    split = " against ".join(str(group.winners) for group in test.groups)
    first, share = (
        test.groups[0].winners,
        test.groups[0].runs / sum(group.runs for group in test.groups),
    )
    even = (
        f" (binomial p = {split_p(first, len(values), share):.2f} where {100 * share:.0f} % of the runs are)"
        if len(test.groups) == 2
        else ""
    )
    return f"kept wide: {split} high performers{even}, which chance explains"


def _narrow(test: ParameterTest, winners: int) -> Narrowing:
    """A supported narrowing."""
    dimension, agreed = test.parameter.dimension, set(test.winning_values)
    untried = dimension.scale == "categorical" and not all(group.runs for group in test.groups)
    if len(agreed) == 1 and not untried:
        (value,) = agreed
        return Narrowing(None, value, f"all {winners} high performers agree")
    return _weight_choices(test) if dimension.scale == "categorical" else _tighten_range(test)


def _weight_choices(test: ParameterTest) -> Narrowing:
    """Choices without those whose success rate is surely below that of all runs, weighted by their rates (Laplace's estimate; one
    that was never run counts as all runs do, since nothing speaks against it)."""
    runs, winners = (
        sum(group.runs for group in test.groups),
        sum(group.winners for group in test.groups),
    )
    kept = [
        (value, group)
        for value, group in zip(test.values, test.groups, strict=True)
        if group.high >= winners / runs
    ]
    dropped = [
        str(value)
        for value, group in zip(test.values, test.groups, strict=True)
        if group.high < winners / runs
    ]
    without = (
        f", without {', '.join(dropped)} (interval below the {100 * winners / runs:.0f} % of all runs)"
        if dropped
        else ""
    )
    if len(kept) == 1:
        return Narrowing(None, kept[0][0], f"success depends on the value{without}")
    rates = [
        (group.winners + 1) / (group.runs + 2) if group.runs else winners / runs
        for _, group in kept
    ]
    weights = tuple(float(max(1, round(100 * rate / sum(rates)))) for rate in rates)
    choices = tuple(value for value, _ in kept)
    after = replace(
        test.parameter.dimension, scale="categorical", choices=choices, weights=weights, start=None
    )
    return Narrowing(
        after, None, f"success depends on the value: weighted by success rate{without}"
    )


def _tighten_range(test: ParameterTest) -> Narrowing:
    """The range of the high performers with a margin, within the range before."""
    dimension = test.parameter.dimension
    units = [dimension.to_unit(value) for value in test.winning_values]
    margin = MARGIN * (max(units) - min(units))
    low, high = (
        float(dimension.to_value(min(max(unit, 0.0), 1.0)))
        for unit in (min(units) - margin, max(units) + margin)
    )
    if not dimension.integer:
        low, high = (
            max(round_to_digits(low, 2, up=False), dimension.low),
            min(round_to_digits(high, 2, up=True), dimension.high),
        )
    if dimension.to_unit(high) - dimension.to_unit(low) > 1.0 - _MIN_GAIN:
        return Narrowing(
            dimension,
            None,
            "kept: success depends on it, but high performers lie nearly everywhere",
        )
    seen = (
        f"{min(map(float, test.winning_values)):.3g} to {max(map(float, test.winning_values)):.3g}"
    )
    return Narrowing(
        replace(dimension, low=low, high=high, start=None),
        None,
        f"high performers from {seen}, and {100 * MARGIN:.0f} % on either side",
    )


def make_entry(dimension: Dimension) -> dict[str, object]:
    """A dimension as an entry of a search-space file."""
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
        "log": dimension.scale == "log",
        **({"integer": True} if dimension.integer else {}),
    }
