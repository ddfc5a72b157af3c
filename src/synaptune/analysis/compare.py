"""Paired comparison of two configurations on the same seeds.

    improvement of seed i d_i = 100 (1 - after_i / before_i)                                [%] (1)
    t interval            mean(d) +- t(1 - (1 - level)/2, n - 1) s(d) / sqrt(n)             [%] (2)
    bootstrap interval    BCa percentiles of the mean of resampled d                        [%] (3)
    t test                t = mean(d) sqrt(n) / s(d), two-sided on n - 1 degrees of freedom     (4)
    signed-rank test      sum of the ranks of |d_i| over d_i > 0, two-sided, against all signs  (5)
    effect                J(n - 1) mean(d) / s(d)                                               (6)
    J(m)                  Gamma(m/2) / (sqrt(m/2) Gamma((m - 1)/2))                             (7)
    Holm's adjustment     the k-th smallest of m: max over j <= k of min(1, (m - j + 1) p_j)    (8)
    pooled deviation      s^2 = sum_k sum_i (d_ki - mean(d_k))^2 / m,  m = sum_k (n_k - 1)      (9)
    its degrees           m / (1 + (K - 1) r^2),  r = 1/2                                      (10)

The quantities should fall, such as perplexity, so a positive improvement is better. BCa means
bias-corrected and accelerated.
Source: (1) derived; (2), (4) Student, Biometrika 6:1 (1908); (3) Efron, J Am Stat Assoc 82:171
(1987), eq. (2.3); (5) Wilcoxon, Biometrics Bulletin 1:80 (1945); (6) Cohen, Statistical Power
Analysis (1988), eq. (2.3.5), d_z; (7) Hedges, J Educ Stat 6:107 (1981), eq. (6e); (8) Holm, Scand J
Stat 6:65 (1979); (9) the usual pooled variance of groups with one spread; (10)
Satterthwaite, Biometrics Bulletin 2:110 (1946), for K differences that share one side, of which any
two have the correlation r.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from synaptune.analysis.results import Comparison

CONFIDENCE = 0.95  # coverage of the intervals shown [probability]; chosen: the usual 95 %
RESAMPLES = 9999  # resamples of a bootstrap interval; chosen: the default of scipy
_SEED = 20_260  # of the resampling: the same numbers give the same interval


class Improvement(NamedTuple):
    """Mean paired improvement and its interval [%]."""

    mean: float
    low: float
    high: float


class Spread(NamedTuple):
    """A standard deviation of differences [%] with its degrees of freedom."""

    deviation: float
    degrees: float


class Interval(NamedTuple):
    """A mean and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


def compute_interval(values: Sequence[float]) -> Interval:
    """Return the mean of values with its 95 % interval."""
    from scipy.stats import t

    mean, count = statistics.fmean(values), len(values)
    half = (
        float(t.ppf((1.0 + CONFIDENCE) / 2.0, count - 1))
        * statistics.stdev(values)
        / math.sqrt(count)
    )
    return Interval(mean, mean - half, mean + half)


def compute_improvement(
    before: Sequence[float], after: Sequence[float], level: float = CONFIDENCE
) -> Improvement:
    """Compute the improvement of `after` over `before`, paired by position, eqs. (1) and (2).

    Raises:
        ValueError: unequal lengths, fewer than two pairs, or a `before` that is not positive.
    """
    return _test_mean(_compute_gains(before, after), level)[0]


def pool_spread(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Spread:
    """Pool the spread of the improvements of several comparisons, eqs. (9) and (10).

    Args:
        pairs: `before` and `after` of each comparison, each with at least two values. One of the
            two is the same in all comparisons.
    """
    groups = [_compute_gains(before, after) for before, after in pairs]
    degrees = sum(len(gains) - 1 for gains in groups)
    squares = sum((len(gains) - 1) * statistics.variance(gains) for gains in groups)
    return Spread(math.sqrt(squares / degrees), degrees / (1.0 + (len(groups) - 1) / 4.0))


def compare(
    before: Sequence[float],
    after: Sequence[float],
    level: float = CONFIDENCE,
    spread: Spread | None = None,
) -> Comparison:
    """Compare `after` with `before`, paired by position, eqs. (1) to (7).

    Args:
        before: values of one configuration.
        after: values of the other.
        level: coverage of the intervals.
        spread: standard deviation of the differences for eqs. (2) and (4), as of `pool_spread`;
            None takes that of these differences.

    If all differences are equal, the intervals have no width and p is 0 (1 if the differences are
    0). The effect is None in that case, and for two pairs, where (7) is 0.

    Raises:
        ValueError: as `compute_improvement`.
    """
    gains = _compute_gains(before, after)
    improvement, p = _test_mean(gains, level, spread)
    deviation, count = statistics.stdev(gains), len(gains)
    effect = (
        hedges_correction(count - 1) * improvement.mean / deviation
        if deviation > 0.0 and count > 2
        else None
    )
    return Comparison(
        count, *improvement, *_bootstrap_interval(gains, level), p, signed_rank(gains), effect
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, eq. (8), and return them in the same order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def signed_rank(differences: Sequence[float]) -> float | None:
    """Compute the two-sided p of Wilcoxon's signed-rank test, eq. (5).

    The test is exact: it counts the distribution over all signs. Ties share their mean rank. Pairs
    without a difference are left out.

    Returns:
        The p-value; None if every difference is zero.
    """
    import numpy as np
    from scipy.stats import rankdata

    nonzero = np.array([value for value in differences if value != 0.0])
    if not len(nonzero):
        return None
    # Ranks are doubled, so that mean ranks of ties are integers.
    ranks = np.rint(2.0 * rankdata(np.abs(nonzero))).astype(int)
    probabilities = np.ones(1)
    for rank in ranks:  # convolve the distribution of the sum over random signs, rank by rank
        probabilities = (np.pad(probabilities, (0, rank)) + np.pad(probabilities, (rank, 0))) / 2.0
    positive_sum = int(ranks[nonzero > 0].sum())
    return float(
        min(
            1.0,
            2.0 * min(probabilities[: positive_sum + 1].sum(), probabilities[positive_sum:].sum()),
        )
    )


def hedges_correction(degrees: int) -> float:
    """Compute the small-sample correction of a standardised mean difference, eq. (7)."""
    if degrees < 2:
        return 0.0
    return math.exp(math.lgamma(degrees / 2.0) - math.lgamma((degrees - 1) / 2.0)) / math.sqrt(
        degrees / 2.0
    )


def _compute_gains(before: Sequence[float], after: Sequence[float]) -> list[float]:
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(
            f"got {len(before)} and {len(after)} values: expected the same number, at least 2, "
            "on the same seeds"
        )
    if min(before) <= 0:
        raise ValueError(
            f"got a value of {min(before)} before: expected positive values, since the "
            "improvement is relative"
        )
    return [100.0 * (1.0 - new / old) for old, new in zip(before, after, strict=True)]  # eq. (1)


def _test_mean(
    gains: Sequence[float], level: float, spread: Spread | None = None
) -> tuple[Improvement, float]:
    """Compute the mean with its interval, eq. (2), and the p of its t-test, eq. (4)."""
    from scipy.stats import t

    deviation, degrees = spread or Spread(statistics.stdev(gains), len(gains) - 1)
    mean, error = statistics.fmean(gains), deviation / math.sqrt(len(gains))
    if error == 0.0:
        return Improvement(mean, mean, mean), 1.0 if mean == 0.0 else 0.0
    low, high = t.interval(level, degrees, mean, error)
    return Improvement(mean, float(low), float(high)), float(2.0 * t.sf(abs(mean) / error, degrees))


def _bootstrap_interval(
    gains: Sequence[float], level: float, method: str = "BCa"
) -> tuple[float, float]:
    """Compute eq. (3).

    Plain percentiles are used where the correction is undefined, as for nearly equal differences.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if min(gains) == max(gains):
        return gains[0], gains[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa warns where its correction is undefined
        low, high = bootstrap(
            (gains,),
            np.mean,
            confidence_level=level,
            method=method,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    if method == "BCa" and not (math.isfinite(low) and math.isfinite(high)):
        return _bootstrap_interval(gains, level, "percentile")
    return float(low), float(high)
