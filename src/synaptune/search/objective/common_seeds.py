"""Several seeds of one candidate, and what it is worth that candidates share them.

    objective over k seeds    m = mean(f_i),   standard error s(f) / sqrt(k)                                (1)
    different seeds           D = mean over pairs (i, j) of s_i^2 + s_j^2                                    (2)
    common seeds              C = mean over pairs (i, j) of s^2 over seeds of f_i - f_j                      (3)
    worth                     D / C: how many times the runs that different seeds would need                 (4)

f_i[s] the objective of candidate i on seed s, s_i its standard deviation over seeds.
Source: (2) to (4) Law and Kelton, Simulation Modeling and Analysis, the chapter on variance reduction: common random numbers
pay by the covariance that they bring.
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
    """A candidate over seeds: mean objective, its standard error (null for one seed), and each metric's mean.

    objectives: by seed, in their order.
    """

    objective: float
    standard_error: float | None
    metrics: dict[str, float]
    objectives: tuple[float, ...]

    def to_facts(self) -> dict[str, Any]:
        """What the study keeps of it beside the objective and the metrics."""
        return {
            "objective_standard_error": self.standard_error,
            "objective_by_seed": list(self.objectives),
        }


def list_common_seeds(first: int, count: int) -> list[int]:
    """The seeds that every candidate of a study shares; raises ValueError for a count below 1."""
    if count < 1:
        raise ValueError(f"got {count} seeds: expected at least 1")
    return list(range(first, first + count))


def average_seeds(
    objectives: Sequence[float], metrics: Sequence[Mapping[str, float]]
) -> SeedAverage:
    """One evaluation out of the runs of a candidate on several seeds, eq. (1); a metric that a run lacks is left out.

    Raises ValueError without any run, for unequal lengths, or an objective that is no finite number: a candidate that fails on
    one seed has failed.
    """
    if not objectives or len(objectives) != len(metrics):
        raise ValueError(
            f"got {len(objectives)} objectives and {len(metrics)} sets of metrics: expected equally many, at least 1"
        )
    if not all(math.isfinite(value) for value in objectives):
        raise ValueError(
            f"got objectives {list(objectives)}: expected finite ones; a candidate that fails on one seed has failed"
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
    """What common seeds buy [unit of the objective; variances its square].

    common, different: variance of a difference of two candidates, eqs. (3) and (2); ratio: eq. (4), with its 95 % bootstrap
    interval over candidates (it does not know how few the seeds are); rank_correlation: Spearman's, of the candidates, mean over
    pairs of seeds; seed_deviation, candidate_deviation: standard deviation over the seeds of a candidate, and over the
    candidates' means.
    """

    common: float
    different: float
    ratio: float
    ratio_interval: tuple[float, float]
    rank_correlation: float
    seed_deviation: float
    candidate_deviation: float


def measure_common_seeds(losses: Sequence[Sequence[float]]) -> CommonSeedGain:
    """Eqs. (2) to (4) for losses (candidate, seed); raises ValueError for fewer than three candidates or two seeds."""
    import numpy as np

    table = np.array(losses, float)
    if table.ndim != 2 or table.shape[0] < 3 or table.shape[1] < 2:
        raise ValueError(
            f"got losses of shape {table.shape}: expected (candidate, seed), at least (3, 2)"
        )
    pairwise = (table[:, None] - table[None, :]).var(axis=-1, ddof=1)
    single = table.var(axis=1, ddof=1)
    apart = single[:, None] + single[None, :]
    once = np.ones(len(table))
    common, different = _average_pairs(pairwise, once), _average_pairs(apart, once)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(table), once / len(table), size=_RESAMPLES).astype(float)
    ratios = [
        _average_pairs(apart, times) / least
        for times in drawn
        if (least := _average_pairs(pairwise, times)) > 0
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


def _average_pairs(values: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    """Mean of values (candidate, candidate) over the pairs of different candidates, each counted `times`; 0 without a pair."""
    import numpy as np

    weights = np.outer(times, times)
    np.fill_diagonal(weights, 0.0)
    total = weights.sum()
    return float((weights * values).sum() / total) if total > 0 else 0.0
