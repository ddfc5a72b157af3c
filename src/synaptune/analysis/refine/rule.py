"""Refine a search space from the runs of an earlier search.

A run succeeds if it is a high performer. For each parameter a test decides whether success depends
on it:

    choice  p of the winners among the values              exact_tests.py, eq. (1) or (3)
    range   p = min(1, 2 min(p among bins, p of position)) eq. (1) or (3), and (2)            (1)
    all     p adjusted for the number of parameters (Holm) analysis/compare.py

A parameter is narrowed only if its adjusted p is below ALPHA. If no parameter has an effect, some
parameter is narrowed in at most 5 % of all designs (measured in the tests).

The runs of an adaptive search are not an independent sample. Later points lie where earlier ones
were good, so success correlates with everything that moved in the meantime. Runs of one generation
are drawn from the same distribution, so the labels are shuffled within generations. Parameters that
are correlated within generations cannot be separated: success may depend on the other one. An
optimizer that proposes one run at a time draws every run from another distribution. Then no labels
can be shuffled and no parameter can be tested.

`rule="plan"` narrows like the plan of the focused sweep, without a test (plan_rule.py).
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
)
from synaptune.analysis.refine.narrowing import explain_unsupported, make_entry, narrow
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
from synaptune.search.space.values import Value

if TYPE_CHECKING:
    from synaptune.analysis.refine.exact_tests import Labels

Rule = Literal["tested", "plan"]
QUANTILE = 1.0 / 3.0  # best part of the runs that counts as high performers; the plan: 16 of 48
ALPHA = 0.05  # adjusted p that supports a narrowing [probability]; chosen: the usual 5 %
MARGIN = 0.1  # of the winners' width, left on either side; chosen: winners not yet seen
_MIN_GAIN = 0.1  # of a range's width: a smaller narrowing is none
_BIN_COUNTS = (3, 6)  # fewest and most bins at round numbers
_QUARTERS = 4
_UNTESTABLE = (
    "not testable: no generation has both a high performer and another run, so that no labels can "
    "be shuffled"
)


class Proposal(NamedTuple):
    """The proposal for one parameter.

    Attributes:
        test: test of the parameter.
        adjusted_p: p adjusted for the number of parameters.
        supported: whether the adjusted p is below ALPHA.
        narrowing: the parameter afterwards.
    """

    test: ParameterTest
    adjusted_p: float
    supported: bool
    narrowing: Narrowing

    @property
    def is_narrowed(self) -> bool:
        """Whether the narrowing changes the parameter."""
        return self.narrowing.after != self.test.parameter.dimension


@dataclass(frozen=True)
class Refinement:
    """Result of a refinement.

    Attributes:
        runs: the runs.
        rule: the rule that narrowed the parameters.
        threshold: metric from which on a run is a high performer.
        winners: number of high performers.
        proposals: the proposal for each parameter.
    """

    runs: RunTable
    rule: Rule
    threshold: float
    winners: int
    proposals: tuple[Proposal, ...]

    def make_space_file(self, name: str) -> SpaceFile:
        """Make the file of the refined search space."""
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
    """Refine the search space of runs.

    Args:
        runs: the runs.
        threshold: metric from which on a run is a high performer.
        quantile: share of high performers, used without a threshold; None means QUANTILE.
        rule: "tested" narrows what a test supports, "plan" narrows as the plan does.
        shuffles: number of shuffles of the labels.
        seed: seed of the shuffles.

    Raises:
        UserError: no run or every run is a high performer, or no parameter varies.
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
            do=f"choose another --threshold (the runs have {min(runs.scores):g} to "
            f"{max(runs.scores):g}) or --quantile",
        )
    labels = shuffle_labels(wins, runs.strata, seed, shuffles)
    if not (testable := _is_testable(wins, runs.strata)):
        runs = replace(
            runs,
            notes=(
                *runs.notes,
                f"{_UNTESTABLE}; every p is therefore 1 (--rule plan needs no test)",
            ),
        )
    tests = [_test_parameter(runs, parameter, wins, labels) for parameter in runs.parameters]
    adjusted = holm([test.p for test in tests])
    proposals = tuple(
        _propose(test, p, rule, winners=sum(wins), runs=runs, testable=testable)
        for test, p in zip(tests, adjusted, strict=True)
    )
    return Refinement(runs, rule, limit, sum(wins), proposals)


def _is_testable(wins: Sequence[bool], strata: Sequence[int]) -> bool:
    """Return whether any stratum has both high performers and other runs."""
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
        group_winners = sum(wins[row] for row in members)
        mean = statistics.fmean(runs.scores[row] for row in members) if members else None
        groups.append(
            RunGroup(
                name,
                len(members),
                group_winners,
                group_winners / max(len(members), 1),
                *rate_interval(group_winners, len(members)),
                mean,
            )
        )
    single_stratum = len(set(runs.strata)) == 1
    p_groups = (
        exact_p([group.winners for group in groups], [group.runs for group in groups])
        if single_stratum
        else None
    )
    p_groups = group_p(codes, labels, runs.strata) if p_groups is None else p_groups
    is_range = parameter.dimension.scale != "categorical"
    p_position = (
        position_p([float(value) for value in parameter.values], labels, runs.strata)
        if is_range
        else None
    )
    p = p_groups if p_position is None else min(1.0, 2.0 * min(p_groups, p_position))  # eq. (1)
    order = sorted(
        (row for row, group_winners in enumerate(wins) if group_winners),
        key=lambda row: runs.scores[row],
        reverse=runs.maximize,
    )
    winning = tuple(parameter.values[row] for row in order)
    return ParameterTest(parameter, tuple(groups), edges, values, winning, p_groups, p_position, p)


def _group_values(parameter: RunParameter) -> tuple[Value, ...]:
    """Return all choices, also those without runs; for integers the sorted values of the runs."""
    return parameter.dimension.choices or tuple(sorted(set(parameter.values), key=float))


def make_bins(parameter: RunParameter) -> tuple[float, ...]:
    """Choose the edges of bins over the values of a range.

    On a log scale the edges are at 1, 3, 10, ... or at decades, if that makes 3 to 6 bins.
    Otherwise every bin has the same number of runs. The edges do not depend on the metric, so the
    tests are exact.

    Returns:
        The edges; empty for choices and for integers with few values.
    """
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
    adjusted_p: float,
    rule: Rule,
    *,
    winners: int,
    runs: RunTable,
    testable: bool,
) -> Proposal:
    supported = adjusted_p < ALPHA
    if rule == "plan":
        narrowing = apply_plan_rule(test, maximize=runs.maximize, bounded=runs.bounded)
    elif supported:
        narrowing = narrow(test, winners)
    else:
        reason = explain_unsupported(test) if testable else f"kept wide: {_UNTESTABLE}"
        narrowing = Narrowing(test.parameter.dimension, None, reason)
    return Proposal(test, adjusted_p, supported, narrowing)
