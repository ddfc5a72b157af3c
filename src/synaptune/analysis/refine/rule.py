"""Refine a search space from the runs of an earlier search.

A run succeeds if it is a high performer. For each parameter a test decides whether success depends
on it:

    choice  p of the winners among the values              exact_tests.py, eq. (1) or (3)
    range   p = min(1, 2 min(p among bins, p of position)) eq. (1) or (3), and (2)            (1)
    all     p adjusted for the number of parameters (Holm) analysis/compare.py

A parameter is narrowed only if its adjusted p is below ALPHA. In a study the report's own test of
the effect (analysis/effects.py) has to agree, so that no range is narrowed of which the report says
that it has no effect. The two p-values differ: that test asks whether the loss of every trial
depends on the parameter, and this one whether the best third lies elsewhere in its range. If no
parameter has an effect, some parameter is narrowed in at most 5 % of all designs (measured in the
tests).

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
    shorten_list,
)
from synaptune.core.errors import user_error
from synaptune.core.moments import compute_mean
from synaptune.core.text import format_choices
from synaptune.search.space.file import SpaceFile
from synaptune.search.space.values import make_key

if TYPE_CHECKING:
    from synaptune.analysis.refine.exact_tests import Labels

Rule = Literal["tested", "plan"]
QUANTILE = 1.0 / 3.0  # best part of the runs that counts as high performers; the plan: 16 of 48
ALPHA = 0.05  # adjusted p that supports a narrowing [probability]; chosen: the usual 5 %
_BIN_COUNTS = (3, 6)  # fewest and most bins at round numbers
_UNTESTABLE = (
    "not testable: no generation has both a high performer and another run, so that no labels can "
    "be shuffled"
)


class Proposal(NamedTuple):
    """The proposal for one parameter.

    Attributes:
        test: test of the parameter.
        adjusted_p: p adjusted for the number of parameters.
        supported: whether the adjusted p, and that of the effect if known, are below ALPHA.
        narrowing: the parameter afterwards.
        effect_p: adjusted p of the effect in the report of the study; None if it is not tested.
    """

    test: ParameterTest
    adjusted_p: float
    supported: bool
    narrowing: Narrowing
    effect_p: float | None = None

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
            else:
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
        reasons = shorten_list([f"{name} ({reason})" for name, reason in runs.left_out], "; ")
        raise user_error(
            got=f"no parameter that varies in {runs.source}{f': {reasons}' if reasons else ''}",
            expected="at least one",
            do="name its columns with --parameters, or correct their cells",
        )
    share = QUANTILE if quantile is None else quantile
    limit = _choose_threshold(runs, share) if threshold is None else threshold
    wins = [score >= limit if runs.maximize else score <= limit for score in runs.scores]
    winners = sum(wins)
    if not 0 < winners < len(wins):
        sign = "at least" if runs.maximize else "at most"
        raise user_error(
            got=f"{winners} of {len(wins)} runs with {runs.metric} {sign} {limit:g}",
            expected="some high performers, and some others",
            do=f"choose another --threshold (the runs have {min(runs.scores):g} to "
            f"{max(runs.scores):g}) or --quantile",
        )
    labels = shuffle_labels(wins, runs.strata, seed, shuffles)
    # Some stratum needs both high performers and other runs.
    testable = len({*zip(runs.strata, wins, strict=True)}) > len(set(runs.strata))
    if not testable:
        note = f"{_UNTESTABLE}; every p is therefore 1 (--rule plan needs no test)"
        runs = replace(runs, notes=(*runs.notes, note))
    tests = [_test_parameter(runs, parameter, wins, labels) for parameter in runs.parameters]
    proposals = []
    for test, adjusted_p in zip(tests, holm([test.p for test in tests]), strict=True):
        effect_p = runs.effects.get(test.parameter.dimension.name)
        has_effect = effect_p is None or effect_p < ALPHA
        supported = adjusted_p < ALPHA and has_effect
        if rule == "plan":
            narrowing = apply_plan_rule(test, maximize=runs.maximize, bounded=runs.bounded)
        elif supported:
            narrowing = narrow(test, winners)
        else:
            reason = explain_unsupported(test) if testable else f"kept wide: {_UNTESTABLE}"
            if adjusted_p < ALPHA:
                reason = (
                    "kept wide: the high performers lie elsewhere than by chance, but the report "
                    f"finds no effect on the loss (adjusted p = {effect_p:.2g})"
                )
            narrowing = Narrowing(test.parameter.dimension, None, reason)
        proposals.append(Proposal(test, adjusted_p, supported, narrowing, effect_p))
    return Refinement(runs, rule, limit, winners, tuple(proposals))


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
    edges, numbers = make_bins(parameter), parameter.values
    # All choices are groups, also those without runs.
    values = () if edges else parameter.dimension.choices or tuple(sorted(set(numbers), key=float))
    indices = {make_key(value): index for index, value in enumerate(values)}
    codes = [
        bisect.bisect_right(edges[1:-1], float(value)) if edges else indices[make_key(value)]
        for value in numbers
    ]
    bins = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    groups = []
    for code, name in enumerate(bins or format_choices(values)):
        members = [row for row, other in enumerate(codes) if other == code]
        count, won = len(members), sum(wins[row] for row in members)
        mean = compute_mean([runs.scores[row] for row in members]) if members else None
        groups.append(
            RunGroup(name, count, won, won / max(count, 1), *rate_interval(won, count), mean)
        )
    table = [group.winners for group in groups], [group.runs for group in groups]
    exact = exact_p(*table) if len(set(runs.strata)) == 1 else None
    p = p_groups = group_p(codes, labels, runs.strata) if exact is None else exact
    p_position = None
    if parameter.dimension.scale != "categorical":
        p_position = position_p([float(value) for value in numbers], labels, runs.strata)
        p = min(1.0, 2.0 * min(p_groups, p_position))  # eq. (1)
    order = sorted(range(len(wins)), key=lambda row: runs.scores[row], reverse=runs.maximize)
    winning = tuple(numbers[row] for row in order if wins[row])
    return ParameterTest(parameter, tuple(groups), edges, values, winning, p_groups, p_position, p)


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
    quarters = {round_to_digits(values[len(values) * part // 4], 3) for part in (1, 2, 3)}
    return (low, *sorted(edge for edge in quarters if low < edge < high), high)
