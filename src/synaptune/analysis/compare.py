"""Two configurations on the same seeds.

    improvement of seed i   d_i = 100 (1 - after_i / before_i)                       [%]   (1)
    interval                mean(d) +- t(1 - (1 - level)/2, n - 1) s(d) / sqrt(n)    [%]   (2)

Positive is better for quantities that should fall, such as perplexity. Source: (2) Student 1908, the paired t-interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from synaptune.parameters import constant

LEVEL = constant("compare.level", 0.95, unit="probability", meaning="coverage of the intervals shown", source="chosen: the usual 95 %")


class Improvement(NamedTuple):
    """Mean paired improvement and its interval [%]."""

    mean: float
    low: float
    high: float


def paired_improvement(before: Sequence[float], after: Sequence[float], level: float = LEVEL) -> Improvement:
    """Improvement of `after` over `before`, paired by position, eqs. (1) and (2).

    Raises ValueError for unequal lengths, fewer than two pairs, or a `before` that is not positive.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"got {len(before)} and {len(after)} values: expected equally many, at least 2, from the same seeds")
    if min(before) <= 0:
        raise ValueError(f"got a value of {min(before)} before: expected positive ones, since improvement is relative")
    gains = [100.0 * (1.0 - new / old) for old, new in zip(before, after, strict=True)]
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    if spread == 0.0:
        return Improvement(mean, mean, mean)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2.0, len(gains) - 1)) * spread / math.sqrt(len(gains))
    return Improvement(mean, mean - half, mean + half)
