"""Exact tests of whether success depends on a parameter.

They are conditional on the number of successful runs and on the values of the runs.

    groups    P(table) = prod_g C(n_g, k_g) / C(N, K);                                       (1)
              p = sum of P over the tables that are no likelier than the observed one
    position  m = mean, v = variance of the winners' centred ranks;                          (2)
              T = max(|m - E m| / sd m, (E v - v) / sd v);
              p = share of the shuffled labels with a T that is no smaller
    strata    T = sum_g (k_g - E k_g)^2 / E k_g over labels shuffled within the strata       (3)
    interval  the rates whose binomial tails at k of n both exceed (1 - level)/2             (4)

Group g has n_g runs and k_g winners; N and K are their sums. (2) detects winners at one end and
winners in the middle. The observed labels are one of the shuffles, so that p keeps its level for
any number of shuffles.
Source: (1) Freeman & Halton 1951 (two groups: Fisher's exact test); (2) and (3) permutation tests,
Phipson & Smyth 2010; (4) Clopper & Pearson 1934.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # (shuffle, run): 1 where a run is a high performer; the first row holds the observed labels.
    # Floats of 64 bits: a product with ranks would otherwise convert all of them each time.
    Labels = NDArray[np.float64]

CONFIDENCE = 0.95  # coverage of the intervals of success rates [probability]; chosen: the usual
SHUFFLES = 9999  # most behind a p-value [shuffle]; chosen: p down to 1e-4
_MIN_SHUFFLES = 1999
_MAX_LABELS = 10_000_000  # labels of all shuffles, which bounds time and memory
_MAX_TABLES = 2_000_000  # with more tables, shuffles replace (1)
_TIE_TOLERANCE = 1e-9


def exact_p(winners: Sequence[int], runs: Sequence[int]) -> float | None:
    """Compute p from winners and runs by group, eq. (1); None if there are too many tables."""
    import numpy as np
    from scipy.stats import multivariate_hypergeom

    total = sum(winners)
    log_p = _list_log_p(tuple(runs), total)
    if log_p is None:
        return None
    observed = multivariate_hypergeom.logpmf(winners, runs, total)
    return min(1.0, float(np.exp(log_p[log_p <= observed + 1e-7]).sum()))


@functools.lru_cache(maxsize=4)  # the columns of a table mostly have bins of the same sizes
def _list_log_p(runs: tuple[int, ...], total: int) -> Any:
    """List the log probabilities of all tables, eq. (1); None if there are too many tables."""
    import numpy as np
    from scipy.stats import multivariate_hypergeom

    sizes = [min(count, total) + 1 for count in runs[:-1]]
    if math.prod(sizes) > _MAX_TABLES:
        return None
    # The last group has the remaining winners; an impossible table has the probability 0.
    counts = np.indices(sizes).reshape(len(sizes), math.prod(sizes))
    tables = np.vstack([counts, total - counts.sum(axis=0)]).T
    return multivariate_hypergeom.logpmf(tables, runs, total)


def rate_interval(winners: int, runs: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the interval of a success rate, eq. (4); (0, 1) without runs."""
    from scipy.special import betaincinv

    tail, losers = (1.0 - level) / 2.0, runs - winners
    # The ends are quantiles of beta distributions.
    low = betaincinv(winners, losers + 1, tail) if winners else 0.0
    high = betaincinv(winners + 1, losers, 1.0 - tail) if losers else 1.0
    return float(low), float(high)


def shuffle_labels(
    winners: Sequence[bool], strata: Sequence[int], seed: int, shuffles: int = SHUFFLES
) -> Labels:
    """Shuffle the labels within strata.

    Args:
        winners: whether each run is a high performer.
        strata: stratum of each run; one stratum for all runs means free shuffles.
        seed: seed of the shuffles.
        shuffles: number of shuffles; reduced for very many runs.

    Returns:
        The observed labels in the first row, then the shuffled ones.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count = min(shuffles, max(_MIN_SHUFFLES, _MAX_LABELS // len(winners)))
    labels = np.repeat(np.asarray(winners, dtype=np.float64)[None], count + 1, axis=0)
    blocks = np.asarray(strata)
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        if 0.0 < labels[0, members].mean() < 1.0:
            labels[1:, members] = rng.permuted(labels[1:, members], axis=1)
    return labels


def position_p(values: Sequence[float], labels: Labels, strata: Sequence[int]) -> float:
    """Compute p of the winners' position among the values, eq. (2), with ranks within strata."""
    import numpy as np

    ranks = _rank_in_strata(values, strata)
    count = labels[0].sum()
    mean = labels @ ranks / count
    spread = labels @ ranks**2 / count - mean**2
    statistic = np.maximum(np.abs(_standardise(mean)), -_standardise(spread))
    return float((statistic >= statistic[0] - _TIE_TOLERANCE).mean())


def group_p(codes: Sequence[int], labels: Labels, strata: Sequence[int]) -> float:
    """Compute p of the winners by group, eq. (3); `codes` holds the group of each run."""
    import numpy as np

    blocks, groups = np.asarray(strata), np.asarray(codes)
    members = (groups[:, None] == np.unique(groups)).astype(np.float64)
    expected = np.zeros(members.shape[1])
    for block in np.unique(blocks):
        stratum_runs = blocks == block
        expected += labels[0, stratum_runs].mean() * members[stratum_runs].sum(axis=0)
    deviations = (labels @ members - expected) ** 2
    statistic = (deviations / np.where(expected > 0.0, expected, 1.0)).sum(axis=1)
    return float((statistic >= statistic[0] * (1.0 - 1e-6) - _TIE_TOLERANCE).mean())


def _rank_in_strata(values: Sequence[float], strata: Sequence[int]) -> NDArray[np.float64]:
    import numpy as np
    from scipy.stats import rankdata

    numbers, blocks = np.asarray(values, dtype=float), np.asarray(strata)
    ranks = np.zeros(len(numbers))
    for block in np.unique(blocks):
        members = blocks == block
        ranks[members] = (rankdata(numbers[members]) - (members.sum() + 1) / 2.0) / members.sum()
    return ranks


def _standardise(column: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = column.std()
    return (column - column.mean()) / spread if spread > _TIE_TOLERANCE else column * 0.0
