"""Correlations between the parameters of a search, and the hypotheses stated before the search.

The correlation of a search distribution changes even if no parameter has an effect, because
selection among few points is noisy. That noise is measured by null searches: the same optimizer and
number of generations, with random losses that do not depend on the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from synaptune.analysis.results import Effect, Generation, Hypothesis, Importance
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

NULL_SEARCHES = 99  # null searches behind each p [search]; chosen: p down to 0.01
LONGEST_NULL_SEARCH = 60  # [generation]; chosen: noise has mixed the matrix by then
# The hypotheses of the plan, stated before any search of this project.
GROWS, SHRINKS = "synapse.attention.lambda_loge", "synapse.structural.energy_cost_rel"
REFILL, DECAY, RATIO = "synapse.vesicles.tau_rrp", "synapse.calcium.tau_c", (30.0, 100.0)
HYPOTHESISED_PAIRS = (
    ("synapse.calcium.tau_c", "synapse.calcium.alpha_ca"),
    ("synapse.vesicles.tau_rrp", "synapse.vesicles.rec_rate"),
    ("synapse.postsynaptic.camkii_up", "synapse.postsynaptic.post_fast_lr"),
)
# Parameters that the plan expects among the first five, each with at least this share.
EXPECTED_FIRST = (
    "synapse.postsynaptic.camkii_up",
    "synapse.postsynaptic.post_fast_lr",
    "synapse.postsynaptic.rank_eligibility",
)
FIRST_COUNT, LEAST_SHARE = 5, 0.05
GROWTH = (2.0, 3.0)  # lambda_loge at the best over its start
COST_RANGE = (0.005, 0.010)  # energy_cost_rel at the best


class ParameterPair(NamedTuple):
    """A pair of parameters and its correlation in the final search distribution.

    Attributes:
        first: name of one parameter.
        second: name of the other parameter.
        correlation: of the final distribution [-1..1].
        p: share of null searches in which this pair is at least as strong.
        adjusted_p: share of null searches whose strongest pair is at least as strong.

    Both p-values are None if no null searches were run.
    """

    first: str
    second: str
    correlation: float
    p: float | None
    adjusted_p: float | None


def rank_pairs(
    space: Space, correlation: Sequence[Sequence[float]], null: NDArray[Any] | None = None
) -> list[ParameterPair]:
    """Rank every pair of parameters by the size of its correlation, largest first.

    Args:
        space: the searched parameters.
        correlation: matrix of the final distribution, in the order of the space.
        null: correlations of null searches (count, n, n); None leaves the p-values None.
    """
    import numpy as np

    first, second = np.triu_indices(len(space.names), 1)
    observed = np.array(correlation)[first, second]
    p: list[Any] = [None] * len(observed)
    adjusted = p
    if null is not None:
        size, noise = np.abs(observed), np.abs(null[:, first, second])
        p = ((1 + (noise >= size).sum(axis=0)) / (len(null) + 1)).tolist()
        strongest = noise.max(axis=1)[:, None]
        adjusted = ((1 + (strongest >= size).sum(axis=0)) / (len(null) + 1)).tolist()
    pairs = [
        ParameterPair(space.names[i], space.names[j], *row)
        for i, j, row in zip(
            first, second, zip(observed.tolist(), p, adjusted, strict=True), strict=True
        )
    ]
    return sorted(pairs, key=lambda pair: -abs(pair.correlation))


def simulate_null(
    engine: Engine, space: Space, generations: int, count: int = NULL_SEARCHES
) -> NDArray[Any] | None:
    """Run searches with random losses and return their final correlations.

    Args:
        engine: the optimizer to run.
        space: the searched parameters.
        generations: length of a search; at most LONGEST_NULL_SEARCH are run.
        count: number of searches.

    Returns:
        An array (count, n, n); None for an optimizer without a search distribution.
    """
    import numpy as np

    from synaptune.search.optimizers.cma import CmaOptimizer

    if engine.name != "cma" or generations < 1 or len(space.names) < 2:
        return None
    correlations = []
    for number in range(count):
        optimizer = CmaOptimizer(replace(engine, seed=number), space)
        stream = np.random.default_rng(number)
        for _ in range(min(generations, LONGEST_NULL_SEARCH)):
            units = [optimizer.ask() for _ in range(optimizer.generation_size)]
            optimizer.tell([Observation(unit, float(stream.random())) for unit in units])
        diagnostics = optimizer.get_diagnostics()
        assert diagnostics is not None
        correlations.append(diagnostics.correlation)
    return np.array(correlations)


def null_limit(null: NDArray[Any]) -> float:
    """Compute the 95 % quantile of the strongest correlation of a null search."""
    import numpy as np

    first, second = np.triu_indices(null.shape[1], 1)
    return float(np.quantile(np.abs(null[:, first, second]).max(axis=1), 0.95))


def check_hypotheses(
    best: Mapping[str, Value],
    start: Mapping[str, Value],
    configuration: Mapping[str, object],
    *,
    generations: Sequence[Generation],
    effects: Sequence[Effect],
    pairs: Sequence[ParameterPair],
    importances: Sequence[Importance] = (),
) -> list[Hypothesis]:
    """Check the hypotheses about the searched parameters against the study.

    A parameter without a significant effect drifts at random. Its final value is no evidence, so
    its hypothesis stays open.

    Args:
        best: values of the best trial.
        start: values of the baseline.
        configuration: configuration of the study, for parameters that were not searched.
        generations: the generations of the search.
        effects: the tested effects.
        pairs: correlations of the final distribution.
        importances: importances of the parameters.
    """
    hypotheses: list[Hypothesis] = []
    effective = {effect.name for effect in effects if effect.significant}

    def add(statement: str, finding: str, holds: bool | None, *names: str) -> None:
        idle = " and ".join(_short_name(name) for name in names if name not in effective)
        note = f"; no effect of {idle} was found" if idle else ""
        hypotheses.append(Hypothesis(statement, finding + note, None if idle else holds))

    for name, statement in (
        (GROWS, f"lambda_loge grows {GROWTH[0]:g} to {GROWTH[1]:g} times"),
        (SHRINKS, f"energy_cost_rel lies between {COST_RANGE[0]:g} and {COST_RANGE[1]:g}"),
    ):
        if name in best:
            before, after = start.get(name), best[name]
            change = f"{_format_value(before)} to {_format_value(after)}"
            if generations and name in generations[-1].low:
                low, high = generations[-1].low[name], generations[-1].high[name]
                change += f", the last generation between {low:.3g} and {high:.3g}"
            holds = None
            if isinstance(before, int | float) and isinstance(after, int | float):
                low, high = (
                    COST_RANGE if name == SHRINKS else (GROWTH[0] * before, GROWTH[1] * before)
                )
                holds = low <= after <= high
            add(statement, change, holds, name)
    values = [best.get(name, configuration.get(name)) for name in (REFILL, DECAY)]
    searched = [name for name in (REFILL, DECAY) if name in best]
    if searched and all(isinstance(value, int | float) for value in values):
        ratio = float(values[0]) / float(values[1])  # type: ignore[arg-type]
        statement = f"tau_rrp / tau_c lies between {RATIO[0]:g} and {RATIO[1]:g}"
        add(statement, f"{ratio:.3g} at the best", RATIO[0] <= ratio <= RATIO[1], *searched)
    shares = {entry.name: entry.fanova for entry in importances if entry.fanova is not None}
    ranked = sorted(shares, key=lambda name: -shares[name])
    for name in EXPECTED_FIRST:
        if name in shares:
            rank, share = ranked.index(name) + 1, shares[name]
            holds = rank <= FIRST_COUNT and share >= LEAST_SHARE
            statement = (
                f"{_short_name(name)} is among the first {FIRST_COUNT},"
                f" with at least {100 * LEAST_SHARE:g} %"
            )
            add(statement, f"number {rank}, {100 * share:.1f} % of fANOVA", holds, name)
    for pair in pairs:
        names = next((names for names in HYPOTHESISED_PAIRS if {*names} == {*pair[:2]}), None)
        if names is not None:
            p = pair.adjusted_p
            statement = f"{_short_name(names[0])} and {_short_name(names[1])} move together"
            p_text = "" if p is None else f", adjusted p {p:.2g}"
            holds = None if p is None else p < 0.05 or None
            add(statement, f"correlation {pair.correlation:+.2f}{p_text}", holds)
    return hypotheses


def _short_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
