"""Averages over several seeds, and the gain from using common seeds for all candidates.

    objective over k seeds    m = mean(f_i),   standard error s(f) / sqrt(k)               (1)
    different seeds           D = mean over pairs (i, j) of s_i^2 + s_j^2                  (2)
    common seeds              C = mean over pairs (i, j) of s^2 over seeds of f_i - f_j    (3)
    gain                      D / C: different seeds need so many times as many runs       (4)

f_i[s] is the objective of candidate i on seed s, s_i its standard deviation over seeds.
Source: (2) to (4) Law and Kelton, Simulation Modeling and Analysis, the chapter on variance
reduction: common random numbers reduce the variance of a difference by the covariance that they
add.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from synaptune.search.objective.learning_curve import rank_correlation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 2000


class SeedAverage(NamedTuple):
    """Average of a candidate over seeds.

    Attributes:
        objective: mean objective.
        standard_error: standard error of the mean; None for one seed.
        metrics: means of the metrics by name.
        objectives: objectives in the order of the seeds.
    """

    objective: float
    standard_error: float | None
    metrics: dict[str, float]
    objectives: tuple[float, ...]

    def to_facts(self) -> dict[str, Any]:
        """Return what the study stores in addition to the objective and the metrics."""
        return {
            "objective_standard_error": self.standard_error,
            "objective_by_seed": list(self.objectives),
        }


def list_common_seeds(first: int, count: int) -> list[int]:
    """Return the `count` seeds from `first` on, which all candidates of a study share.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"got {count} seeds: expected at least 1")
    return list(range(first, first + count))


def average_seeds(
    objectives: Sequence[float], metrics: Sequence[Mapping[str, float]]
) -> SeedAverage:
    """Combine the runs of a candidate on several seeds into one evaluation, eq. (1).

    A metric that one of the runs lacks is left out.

    Args:
        objectives: objective of each run.
        metrics: metrics of each run by name.

    Raises:
        ValueError: there is no run, the lengths differ, or an objective is not finite. A candidate
            that fails on one seed has failed.
    """
    if not objectives or len(objectives) != len(metrics):
        raise ValueError(
            f"got {len(objectives)} objectives and {len(metrics)} sets of metrics: "
            "expected equally many, at least 1"
        )
    if not all(math.isfinite(value) for value in objectives):
        raise ValueError(
            f"got objectives {list(objectives)}: expected finite numbers; "
            "a candidate that fails on one seed has failed"
        )
    shared = set.intersection(*(set(entry) for entry in metrics))
    means = {
        name: statistics.fmean(entry[name] for entry in metrics)
        for name in metrics[0]
        if name in shared
    }
    error = (
        statistics.stdev(objectives) / math.sqrt(len(objectives)) if len(objectives) > 1 else None
    )
    return SeedAverage(statistics.fmean(objectives), error, means, tuple(objectives))


class CommonSeedGain(NamedTuple):
    """Gain from common seeds. [u] is the unit of the objective.

    Attributes:
        common: variance of the difference of two candidates with common seeds, eq. (3) [u^2].
        different: the same variance with different seeds, eq. (2) [u^2].
        ratio: eq. (4).
        ratio_interval: 95 % bootstrap interval of the ratio over candidates; it does not account
            for the small number of seeds.
        rank_correlation: Spearman's rank correlation of the candidates, mean over pairs of seeds.
        seed_deviation: standard deviation over the seeds of a candidate [u].
        candidate_deviation: standard deviation over the means of the candidates [u].
    """

    common: float
    different: float
    ratio: float
    ratio_interval: tuple[float, float]
    rank_correlation: float
    seed_deviation: float
    candidate_deviation: float


def measure_common_seeds(losses: Sequence[Sequence[float]]) -> CommonSeedGain:
    """Compute eqs. (2) to (4) for losses of shape (candidate, seed).

    Raises:
        ValueError: there are fewer than three candidates or two seeds.
    """
    import numpy as np

    table = np.array(losses, float)
    if table.ndim != 2 or table.shape[0] < 3 or table.shape[1] < 2:
        raise ValueError(
            f"got losses of shape {table.shape}: expected (candidate, seed), at least (3, 2)"
        )
    pairwise = (table[:, None] - table[None, :]).var(axis=-1, ddof=1)
    single = table.var(axis=1, ddof=1)
    sums = single[:, None] + single[None, :]
    ones = np.ones(len(table))
    common, different = _average_pairs(pairwise, ones), _average_pairs(sums, ones)
    random = np.random.default_rng(0)
    resamples = random.multinomial(len(table), ones / len(table), size=_RESAMPLES).astype(float)
    ratios = [
        _average_pairs(sums, counts) / denominator
        for counts in resamples
        if (denominator := _average_pairs(pairwise, counts)) > 0
    ]
    low, high = np.quantile(ratios, [0.025, 0.975]) if ratios else (math.nan, math.nan)
    pairs = itertools.combinations(range(table.shape[1]), 2)
    return CommonSeedGain(
        common=common,
        different=different,
        ratio=different / common if common > 0 else math.inf,
        ratio_interval=(float(low), float(high)),
        rank_correlation=statistics.fmean(
            rank_correlation(list(table[:, i]), list(table[:, j])) for i, j in pairs
        ),
        seed_deviation=math.sqrt(float(single.mean())),
        candidate_deviation=float(table.mean(axis=1).std(ddof=1)),
    )


def _average_pairs(values: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Average values of shape (candidate, candidate) over the pairs of different candidates.

    Each candidate counts `counts` times. The average over no pair is 0.
    """
    import numpy as np

    weights = np.outer(counts, counts)
    np.fill_diagonal(weights, 0.0)
    total = weights.sum()
    return float((weights * values).sum() / total) if total > 0 else 0.0
