"""Regimes: the gain of each mechanism in the task of its role.

`benchmarks/regimes.py` measures them; with `--study` it stores its records in the note `regimes` of
a study.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import starmap
from typing import Any, NamedTuple


class Gain(NamedTuple):
    """A paired gain over the first variant of a regime; positive is better.

    Attributes:
        mean: mean over the seeds [%].
        low: lower end of its 95 % t interval [%].
        high: upper end of its 95 % t interval [%].
        count: number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int


class RegimeVariant(NamedTuple):
    """One side of a comparison.

    Attributes:
        name: its name.
        score: mean of the metric over the seeds.
        gain: over the first variant; None for that one, and where its metric is 0.
    """

    name: str
    score: float
    gain: Gain | None


class Regime(NamedTuple):
    """A task and the variants that were compared in it.

    Attributes:
        name: name of the task.
        metric: what the gain is measured in, such as `perplexity`.
        equal: what all variants have in common, `steps` or `time`.
        variants: the first is the reference.
    """

    name: str
    metric: str
    equal: str
    variants: tuple[RegimeVariant, ...]


def read_regimes(records: Mapping[str, Mapping[str, Any]]) -> list[Regime]:
    """Read the records of `benchmarks/regimes.py` by the names of their files."""
    regimes = []
    for stem, record in records.items():
        name, _, equal = stem.partition("-equal-")
        variants = tuple(starmap(_read_variant, record["variants"].items()))
        regimes.append(Regime(name, record["metric"], equal, variants))
    return regimes


def _read_variant(name: str, entry: Mapping[str, Any]) -> RegimeVariant:
    gain = None
    if entry["gain"] is not None:
        mean, low, high = entry["gain"]
        gain = Gain(mean, low, high, len(entry["values"]))
    return RegimeVariant(name, statistics.fmean(entry["values"]), gain)
