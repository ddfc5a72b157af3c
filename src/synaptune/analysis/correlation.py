"""Correlations between the parameters of a search, and the hypotheses stated before the search.

The correlation of a search distribution changes even if no parameter has an effect, because
selection among few points is noisy. That noise is measured by null searches: the same optimizer and
number of generations, with random losses that do not depend on the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from synaptune.analysis.results import Effect, Generation, Hypothesis
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

NULL_SEARCHES = 99  # searches that know no loss, behind each p [search]; chosen: p down to 0.01
# Of a blind search [generation]; chosen: noise has mixed the matrix by then.
LONGEST_NULL_SEARCH = 60
# Stated before any search of this project; signs are those the equations suggest.
GROWS, SHRINKS = "synapse.attention.lambda_loge", "synapse.structural.energy_cost_rel"
REFILL, DECAY, RATIO = "synapse.vesicles.tau_rrp", "synapse.calcium.tau_c", (30.0, 100.0)
HYPOTHESISED_PAIRS = (
    ("synapse.calcium.alpha_ca", "synapse.calcium.syt1_slope"),
    ("synapse.postsynaptic.post_fast_lr", "synapse.postsynaptic.camkii_up"),
    ("synapse.attention.lambda_loge", "synapse.attention.barrier_strength"),
)


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
    rows: list[tuple[float, float | None, float | None]] = [
        (float(value), None, None) for value in observed
    ]
    if null is not None:
        size, noise = np.abs(observed), np.abs(null[:, first, second])
        p = (1 + (noise >= size).sum(axis=0)) / (len(null) + 1)
        adjusted = (1 + (noise.max(axis=1)[:, None] >= size).sum(axis=0)) / (len(null) + 1)
        rows = list(zip(observed.tolist(), p.tolist(), adjusted.tolist(), strict=True))
    pairs = [
        ParameterPair(space.names[i], space.names[j], *row)
        for i, j, row in zip(first, second, rows, strict=True)
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
        optimizer, stream = (
            CmaOptimizer(replace(engine, seed=number), space),
            np.random.default_rng(number),
        )
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
    """
    hypotheses = []
    effective = {effect.name for effect in effects if effect.significant}
    last = generations[-1] if generations else None
    for name, verb, sign in ((GROWS, "grows", 1.0), (SHRINKS, "shrinks", -1.0)):
        if name in best:
            change = f"{_format_value(start.get(name))} to {_format_value(best[name])}"
            around = (
                ""
                if last is None
                else f", the last generation between {last.low[name]:.3g} and {last.high[name]:.3g}"
            )
            holds = (
                None
                if start.get(name) is None
                else sign * (float(best[name]) - float(start[name])) > 0.0
            )
            hypotheses.append(
                _make_hypothesis(
                    f"{_short_name(name)} {verb}", change + around, holds, [name], effective
                )
            )
    if REFILL in best or DECAY in best:
        values = [best.get(name, configuration.get(name)) for name in (REFILL, DECAY)]
        if all(isinstance(value, int | float) for value in values):
            ratio = float(values[0]) / float(values[1])  # type: ignore[arg-type]
            claim = f"tau_rrp / tau_c lies between {RATIO[0]:g} and {RATIO[1]:g}"
            searched = [name for name in (REFILL, DECAY) if name in best]
            hypotheses.append(
                _make_hypothesis(
                    claim,
                    f"{ratio:.3g} at the best",
                    RATIO[0] <= ratio <= RATIO[1],
                    searched,
                    effective,
                )
            )
    by_names = {frozenset((pair.first, pair.second)): pair for pair in pairs}
    for names in HYPOTHESISED_PAIRS:
        pair = by_names.get(frozenset(names))
        if pair is not None:
            p_text = "" if pair.adjusted_p is None else f", adjusted p {pair.adjusted_p:.2g}"
            holds = None if pair.adjusted_p is None else pair.adjusted_p < 0.05 or None
            hypotheses.append(
                Hypothesis(
                    f"{_short_name(names[0])} and {_short_name(names[1])} move together",
                    f"correlation {pair.correlation:+.2f}{p_text}",
                    holds,
                )
            )
    return hypotheses


def _make_hypothesis(
    claim: str, finding: str, holds: bool | None, names: Sequence[str], effective: set[str]
) -> Hypothesis:
    idle = [_short_name(name) for name in names if name not in effective]
    if idle:
        return Hypothesis(claim, f"{finding}; no effect of {' and '.join(idle)} was found", None)
    return Hypothesis(claim, finding, holds)


def _short_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
