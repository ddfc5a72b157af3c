"""Screening: which of many parameters matter, by a two-level experiment over all of them.

    X = [H; -H]          fold-over: each row of H and its mirror share a seed               (1)
    u_j = low_j, high_j  for x_j = -1, +1: half way from the default to each end            (2)
    e_j = 2/N sum_r x_rj y_r                      effect: mean at high less mean at low     (3)
    s = 1.5 median |e_j| over |e_j| < 2.5 s0,     s0 = 1.5 median |e_j|                     (4)
    t_j = e_j / s,  on p/3 degrees of freedom                                               (5)
    e_ij = 1/N sum_r x_ri x_rj y_r                interaction of a pair                     (6)

H has the columns of a Hadamard matrix (Plackett and Burman), so that each effect uses all N runs.
The fold-over removes the bias of (3) by the interactions of pairs. With fewer than 2p runs H has p
columns of one matrix and no mirror, or its first rows: the effects are then partly confounded. (4)
supposes that most of the p parameters have no effect.
Source: (1) Box and Wilson, J R Stat Soc B 13:1 (1951); Plackett and Burman, Biometrika 33:305
(1946); matrices of Paley, J Math Phys 12:311 (1933); (2) chosen: equal steps around the defaults;
(4), (5) Lenth, Technometrics 31:469 (1989); (6) derived as (3) for the product of two columns.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synaptune.analysis.compare import CONFIDENCE, holm
from synaptune.analysis.results import Interaction, ScreenEffect, Screening
from synaptune.search.space.space import Space, UnitPoint

ALPHA = 0.05  # of the adjusted p-values; chosen: the usual 5 %
CHOSEN_P = 0.1  # unadjusted p below which a parameter is searched; chosen: a miss costs more
MIN_CHOSEN, MAX_CHOSEN = 3, 10  # parameters of a screened search; chosen: up to the plan's ten
_MAX_FACTORS = 8  # parameters with the largest effects, of which pairs are tested
_MIN_ORDER = 4


class ScreenPlan(NamedTuple):
    """The runs of a screening.

    Attributes:
        signs: -1 or 1 by run and parameter, (N, p).
        blocks: number of the seed of each run.
        is_folded: whether each run has its mirror.
    """

    signs: NDArray[Any]
    blocks: Sequence[int]
    is_folded: bool


def plan_screen(parameters: int, runs: int, seed: int) -> ScreenPlan:
    """Plan a screening with at most `runs` runs, at least 4.

    Args:
        parameters: number of parameters.
        runs: largest number of runs.
        seed: of the random order of rows and columns.
    """
    stream = np.random.default_rng(seed)
    half = runs // 2
    folded = max((n for n in _list_orders(half) if n >= parameters), default=None)
    single = max((n for n in _list_orders(runs) if n > parameters), default=None)
    if folded is None and single is not None:
        # The first column of the matrix is constant: the mean.
        matrix = make_hadamard(single)
        matrix = (matrix * matrix[:, :1])[:, 1:]
        signs = matrix[:, stream.permutation(single - 1)[:parameters]]
        signs = (signs * stream.choice([-1, 1], parameters))[stream.permutation(single)]
        return ScreenPlan(signs, [0] * single, is_folded=False)
    order = folded or next(n for n in itertools.count(parameters) if n in _list_orders(n))
    columns = make_hadamard(order)[:, stream.permutation(order)[:parameters]]
    rows = columns[stream.permutation(order)[: min(half, order)]]
    rows = rows * stream.choice([-1, 1], parameters)
    signs = np.stack([rows, -rows], axis=1).reshape(-1, parameters)
    return ScreenPlan(signs, [run // 2 for run in range(len(signs))], is_folded=True)


def _list_orders(largest: int) -> list[int]:
    """Return the orders up to `largest` of which `make_hadamard` has a matrix."""
    bases = {_MIN_ORDER} | {
        n for n in range(8, largest + 1, 4) if _is_prime(n - 1)
    }  # n - 1 = 3 modulo 4
    return sorted(
        {
            base << power
            for base in bases
            for power in range(max(1, largest).bit_length())
            if base << power <= largest
        }
    )


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def make_hadamard(order: int) -> NDArray[Any]:
    """Return a Hadamard matrix: Paley's of a prime, or twice a smaller one (Sylvester)."""
    if order == _MIN_ORDER or not _is_prime(order - 1):
        half = make_hadamard(order // 2) if order > _MIN_ORDER else np.array([[1, 1], [1, -1]])
        return np.block([[half, half], [half, -half]])
    prime = order - 1
    squares = {(number * number) % prime for number in range(1, prime)}
    character = np.array([0, *(1 if n in squares else -1 for n in range(1, prime))])
    indexes = np.arange(prime)
    skew = np.zeros((order, order), dtype=int)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[(indexes[:, None] - indexes[None, :]) % prime]
    return np.eye(order, dtype=int) + skew


def to_points(plan: ScreenPlan, space: Space) -> list[UnitPoint]:
    """Return the point of each run, eq. (2)."""
    start = np.array(space.get_start())
    low, high = start / 2.0, (1.0 + start) / 2.0
    points = np.where(plan.signs > 0, high, low)
    return [tuple(row) for row in points.tolist()]


def analyse_screen(
    plan: ScreenPlan, names: Sequence[str], losses: Sequence[float | None]
) -> Screening | None:
    """Compute the effects; None when fewer than half of the runs count.

    A run whose mirror failed is left out with it.

    Args:
        plan: the plan of the runs.
        names: names of the parameters.
        losses: loss of each run; None for a failed one.
    """
    known = np.array([loss is not None and math.isfinite(loss) for loss in losses])
    if plan.is_folded:
        known = np.repeat(known.reshape(-1, 2).all(axis=1), 2)
    if known.sum() < max(_MIN_ORDER, len(losses) / 2):
        return None
    signs = plan.signs[known]
    values = np.array([loss for loss, is_known in zip(losses, known, strict=True) if is_known])
    values = values - values.mean()
    effects = 2.0 * signs.T @ values / len(values)  # eq. (3)
    error, degrees = _estimate_error(effects), len(names) / 3.0
    from scipy.stats import t

    p_values = [float(2.0 * t.sf(abs(effect) / error, degrees)) for effect in effects]
    margin = float(t.ppf((1.0 + CONFIDENCE) / 2.0, degrees)) * error
    adjusted = holm(p_values)
    order = sorted(range(len(names)), key=lambda index: -abs(effects[index]))
    chosen = [index for index in order[:MAX_CHOSEN] if p_values[index] < CHOSEN_P]
    chosen = chosen if len(chosen) >= MIN_CHOSEN else order[:MIN_CHOSEN]
    ranked = [
        ScreenEffect(
            names[index],
            float(effects[index]),
            float(effects[index]) - margin,
            float(effects[index]) + margin,
            p_values[index],
            adjusted[index],
            index in chosen,
        )
        for index in order
    ]
    interactions = _find_interactions(signs, values, effects, names, order[:_MAX_FACTORS])
    failed = sum(loss is None for loss in losses)
    return Screening(ranked, interactions, len(values), failed, error, plan.is_folded)


def _estimate_error(effects: NDArray[Any]) -> float:
    """Compute eq. (4)."""
    sizes = np.abs(effects)
    first = 1.5 * float(np.median(sizes))
    return max(
        1.5 * statistics.median(sizes[sizes < 2.5 * max(first, 1e-300)].tolist() or [0.0]), 1e-12
    )


def _find_interactions(
    signs: NDArray[Any],
    values: NDArray[Any],
    effects: NDArray[Any],
    names: Sequence[str],
    factors: Sequence[int],
) -> list[Interaction]:
    """Test the pairs of the parameters with the largest effects, eq. (6)."""
    from scipy.stats import t

    rest = values - signs @ effects / 2.0
    pairs = list(itertools.combinations(factors, 2))
    degrees = len(values) - len(factors) - 1
    if not pairs or degrees < 1:
        return []
    error = float(rest.std()) / math.sqrt(len(values))
    sizes = [float(np.mean(signs[:, i] * signs[:, j] * rest)) for i, j in pairs]
    p_values = [float(2.0 * t.sf(abs(size) / max(error, 1e-300), degrees)) for size in sizes]
    return [
        Interaction(names[i], names[j], 2.0 * size, p)
        for (i, j), size, p in zip(pairs, sizes, holm(p_values), strict=True)
        if p < ALPHA
    ]


def group_by_subsystem(screening: Screening) -> dict[str, float]:
    """Return the share of each subsystem in the sum of the squared effects, the largest first.

    The expected share of noise is subtracted from each square; a negative rest counts as 0. The
    result is empty if nothing is left.
    """
    sums: dict[str, float] = {}
    for entry in screening.effects:
        group = entry.name.split(".")[-2] if "." in entry.name else entry.name
        sums[group] = sums.get(group, 0.0) + max(entry.effect**2 - screening.error**2, 0.0)
    total = sum(sums.values())
    shares = {group: value / total for group, value in sums.items()} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def to_note(screening: Screening) -> dict[str, Any]:
    """Return a screening as plain values, which the study stores."""
    return screening._asdict() | {
        "effects": [effect._asdict() for effect in screening.effects],
        "interactions": [pair._asdict() for pair in screening.interactions],
    }


def from_note(note: dict[str, Any]) -> Screening:
    """Return the screening of `to_note`."""
    return Screening(
        **note
        | {
            "effects": [ScreenEffect(**effect) for effect in note["effects"]],
            "interactions": [Interaction(**pair) for pair in note["interactions"]],
        }
    )
