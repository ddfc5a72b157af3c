"""Which parameters a search moved together, and the hypotheses stated before it.

The correlation of a search distribution also moves when nothing matters: selection among few points is noise. What noise alone
does is measured: the same optimizer, as many generations, with losses that know nothing of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from synaptune.analysis.results import Effect, Generation, Hypothesis
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.space.space import Space, Value

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
    """Two parameters; correlation of the final distribution; p: share of blind searches with one as strong, adjusted for all pairs
    by their largest; null when not measured."""

    first: str
    second: str
    correlation: float
    p: float | None
    adjusted_p: float | None


def rank_pairs(
    space: Space, correlation: Sequence[Sequence[float]], null: NDArray[Any] | None = None
) -> list[ParameterPair]:
    """Every pair of parameters, the strongest first; null: correlations of blind searches, without which there is no p."""
    import numpy as np

    first, second = np.triu_indices(len(space.names), 1)
    found = np.array(correlation)[first, second]
    rows: list[tuple[float, float | None, float | None]] = [
        (float(value), None, None) for value in found
    ]
    if null is not None:
        size, noise = np.abs(found), np.abs(null[:, first, second])
        alone = (1 + (noise >= size).sum(axis=0)) / (len(null) + 1)
        among = (1 + (noise.max(axis=1)[:, None] >= size).sum(axis=0)) / (len(null) + 1)
        rows = list(zip(found.tolist(), alone.tolist(), among.tolist(), strict=True))
    named = [
        ParameterPair(space.names[i], space.names[j], *row)
        for i, j, row in zip(first, second, rows, strict=True)
    ]
    return sorted(named, key=lambda pair: -abs(pair.correlation))


def simulate_null(
    engine: Engine, space: Space, generations: int, count: int = NULL_SEARCHES
) -> NDArray[Any] | None:
    """The correlations at the end of searches whose losses are noise: (count, n, n); null for an optimizer without a distribution."""
    import numpy as np

    from synaptune.search.optimizers.cma import CmaOptimizer

    if engine.name != "cma" or generations < 1 or len(space.names) < 2:
        return None
    found = []
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
        found.append(diagnostics.correlation)
    return np.array(found)


def null_limit(null: NDArray[Any]) -> float:
    """What the strongest pair of a blind search stays below 95 times in 100."""
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
    together: Sequence[ParameterPair],
) -> list[Hypothesis]:
    """The hypotheses about searched parameters, each with what the study says of it.

    A parameter whose effect was not found wanders: where it ended says nothing, and its hypothesis stays open.
    """
    found = []
    effective = {effect.name for effect in effects if effect.significant}
    last = generations[-1] if generations else None
    for name, word, sign in ((GROWS, "grows", 1.0), (SHRINKS, "shrinks", -1.0)):
        if name in best:
            change = f"{_format_value(start.get(name))} to {_format_value(best[name])}"
            around = (
                ""
                if last is None
                else f", the last generation between {last.low[name]:.3g} and {last.high[name]:.3g}"
            )
            held = (
                None
                if start.get(name) is None
                else sign * (float(best[name]) - float(start[name])) > 0.0
            )
            found.append(
                _make_hypothesis(
                    f"{_short_name(name)} {word}", change + around, held, [name], effective
                )
            )
    if REFILL in best or DECAY in best:
        values = [best.get(name, configuration.get(name)) for name in (REFILL, DECAY)]
        if all(isinstance(value, int | float) for value in values):
            ratio = float(values[0]) / float(values[1])  # type: ignore[arg-type]
            claim = f"tau_rrp / tau_c lies between {RATIO[0]:g} and {RATIO[1]:g}"
            searched = [name for name in (REFILL, DECAY) if name in best]
            found.append(
                _make_hypothesis(
                    claim,
                    f"{ratio:.3g} at the best",
                    RATIO[0] <= ratio <= RATIO[1],
                    searched,
                    effective,
                )
            )
    by_names = {frozenset((pair.first, pair.second)): pair for pair in together}
    for names in HYPOTHESISED_PAIRS:
        pair = by_names.get(frozenset(names))
        if pair is not None:
            sure = "" if pair.adjusted_p is None else f", adjusted p {pair.adjusted_p:.2g}"
            held = None if pair.adjusted_p is None else pair.adjusted_p < 0.05 or None
            found.append(
                Hypothesis(
                    f"{_short_name(names[0])} and {_short_name(names[1])} move together",
                    f"correlation {pair.correlation:+.2f}{sure}",
                    held,
                )
            )
    return found


def _make_hypothesis(
    claim: str, found: str, held: bool | None, names: Sequence[str], effective: set[str]
) -> Hypothesis:
    idle = [_short_name(name) for name in names if name not in effective]
    if idle:
        return Hypothesis(claim, f"{found}; no effect of {' and '.join(idle)} was found", None)
    return Hypothesis(claim, found, held)


def _short_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
