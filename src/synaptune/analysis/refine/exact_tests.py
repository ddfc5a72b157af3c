"""Exact tests of whether success depends on a parameter, given how many runs succeeded and where the runs lie.

    groups      P(table) = prod_g C(n_g, k_g) / C(N, K);  p = sum of P over the tables no likelier than the one seen     (1)
    position    m = mean, v = variance of the winners' centred ranks;                                                   (2)
                T = max(|m - E m| / sd m, (E v - v) / sd v);  p = part of the shuffled labels with T no smaller
    strata      T = sum_g (k_g - E k_g)^2 / E k_g over labels shuffled within the strata                                (3)
    interval    the rates whose binomial tails at k of n both exceed (1 - level)/2                                      (4)

n_g runs and k_g winners of group g, N and K in all. (2) sees winners at one side, and winners in the middle. The seen labels are
one of the shuffles, so that p keeps its level whatever their number.
Source: (1) Freeman & Halton 1951 (two groups: Fisher's exact test); (2) and (3) permutation tests, Phipson & Smyth 2010; (4) Clopper
& Pearson 1934.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Labels = NDArray[
        np.float32
    ]  # (shuffle, run): 1 where a run is a high performer; the first row is what was seen

CONFIDENCE = 0.95  # coverage of the intervals of success rates [probability]; chosen: the usual
SHUFFLES = 9999  # most behind a p-value [shuffle]; chosen: p down to 1e-4
_MIN_SHUFFLES = 1999
_MAX_LABELS = 10_000_000  # labels in all, which bounds time and memory
_MAX_TABLES = 2_000_000  # beyond which (1) is taken from shuffles
_TIE_TOLERANCE = 1e-9


def exact_p(winners: Sequence[int], runs: Sequence[int]) -> float | None:
    """p of winners and runs by group, eq. (1); null where there are too many tables to count."""
    import numpy as np

    total = sum(winners)
    taken, chance, left = np.zeros(1, dtype=int), np.zeros(1), sum(runs)
    for count in runs:
        left -= count
        here = np.arange(min(count, total) + 1)
        if len(taken) * len(here) > _MAX_TABLES:
            return None
        ways = np.array([_log_choose(count, k) for k in here.tolist()])
        taken = (taken[:, None] + here).ravel()
        chance = (chance[:, None] + ways).ravel()
        possible = (taken <= total) & (taken + left >= total)
        taken, chance = taken[possible], chance[possible]
    chance -= _log_choose(sum(runs), total)
    seen = sum(_log_choose(n, k) for n, k in zip(runs, winners, strict=True)) - _log_choose(
        sum(runs), total
    )
    return min(1.0, float(np.exp(chance[chance <= seen + 1e-7]).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def rate_interval(winners: int, runs: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """Success rate's interval, eq. (4); of no runs everything."""
    from scipy.stats import beta

    tail = (1.0 - level) / 2.0
    low = float(beta.ppf(tail, winners, runs - winners + 1)) if winners > 0 else 0.0
    high = float(beta.ppf(1.0 - tail, winners + 1, runs - winners)) if winners < runs else 1.0
    return low, high


def split_p(count: int, of: int, share: float) -> float:
    """Exact two-sided binomial p of `count` winners `of` all in a group that holds this share of the runs."""
    from scipy.stats import binomtest

    return float(binomtest(count, of, share).pvalue)


def shuffle_labels(
    winners: Sequence[bool], strata: Sequence[int], seed: int, shuffles: int = SHUFFLES
) -> Labels:
    """The labels as seen, and shuffled within strata of runs (all of one stratum: freely); fewer shuffles for very many runs."""
    import numpy as np

    stream = np.random.default_rng(seed)
    count = min(shuffles, max(_MIN_SHUFFLES, _MAX_LABELS // len(winners)))
    labels = np.repeat(np.asarray(winners, dtype=np.float32)[None], count + 1, axis=0)
    blocks = np.asarray(strata)
    for block in np.unique(blocks):
        where = np.flatnonzero(blocks == block)
        if 0.0 < labels[0, where].mean() < 1.0:
            labels[1:, where] = stream.permuted(labels[1:, where], axis=1)
    return labels


def position_p(values: Sequence[float], labels: Labels, strata: Sequence[int]) -> float:
    """p of the winners' place among the values, eq. (2), with ranks within strata."""
    import numpy as np

    ranks = _rank_in_strata(values, strata)
    count = labels[0].sum()
    mean = labels @ ranks / count
    spread = labels @ ranks**2 / count - mean**2
    statistic = np.maximum(np.abs(_standardise(mean)), -_standardise(spread))
    return float((statistic >= statistic[0] - _TIE_TOLERANCE).mean())


def group_p(codes: Sequence[int], labels: Labels, strata: Sequence[int]) -> float:
    """p of the winners by group, eq. (3); codes: the group of each run."""
    import numpy as np

    blocks, groups = np.asarray(strata), np.asarray(codes)
    members = (groups[:, None] == np.unique(groups)).astype(np.float32)
    expected = np.zeros(members.shape[1])
    for block in np.unique(blocks):
        where = blocks == block
        expected += labels[0, where].mean() * members[where].sum(axis=0)
    off = (labels @ members - expected) ** 2
    statistic = (off / np.where(expected > 0.0, expected, 1.0)).sum(axis=1)
    return float((statistic >= statistic[0] * (1.0 - 1e-6) - _TIE_TOLERANCE).mean())


def _rank_in_strata(values: Sequence[float], strata: Sequence[int]) -> NDArray[np.float64]:
    import numpy as np
    from scipy.stats import rankdata

    numbers, blocks = np.asarray(values, dtype=float), np.asarray(strata)
    ranks = np.zeros(len(numbers))
    for block in np.unique(blocks):
        where = blocks == block
        ranks[where] = (rankdata(numbers[where]) - (where.sum() + 1) / 2.0) / where.sum()
    return ranks


def _standardise(column: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = column.std()
    return (column - column.mean()) / spread if spread > _TIE_TOLERANCE else column * 0.0
