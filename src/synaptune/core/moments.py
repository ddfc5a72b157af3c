"""Mean and deviation of losses, which a user's penalty may take near the largest float."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def compute_mean(values: Sequence[float]) -> float:
    """Return the mean of finite values, whose sum may be too large for a float."""
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)


def compute_deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None of one value, or if no float can hold it."""
    try:
        return statistics.stdev(values) if len(values) > 1 else None
    except OverflowError:
        return None
