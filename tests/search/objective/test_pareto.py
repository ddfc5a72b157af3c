"""Fronts and volumes against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from synaptune.search.objective.pareto import (
    RHO,
    achievement,
    hypervolume,
    pareto_front,
)


def dominated(points: np.ndarray, at: int) -> bool:
    return any((other <= points[at]).all() and (other < points[at]).any() for other in points)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_the_front_is_what_nothing_dominates(axes):
    points = (
        np.random.default_rng(axes).integers(0, 6, (60, axes)).astype(float)
    )  # small integers: many ties and doubles
    assert list(pareto_front(points)) == [not dominated(points, at) for at in range(len(points))]


def test_equal_points_stay_on_the_front_together():
    assert list(pareto_front([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])) == [True, True, False]


def exact(points: np.ndarray, reference: np.ndarray) -> float:
    """Inclusion and exclusion over all sets of points: 2^n terms."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            total -= (-1) ** count * float(
                np.prod(np.clip(reference - np.max(chosen, axis=0), 0.0, None))
            )
    return total


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_hypervolume_is_exact(axes, seed):
    random = np.random.default_rng(seed)
    points = random.uniform(-1.0, 1.3, (9, axes))  # some lie beyond the reference
    points[3] = points[1]
    points[4, 0] = points[5, 0]
    assert hypervolume(points) == pytest.approx(exact(points, np.ones(axes)), rel=1e-12)


def test_the_hypervolume_of_many_points_is_what_random_shots_hit():
    random = np.random.default_rng(7)
    points = random.uniform(0.0, 1.0, (40, 3))
    shots = random.uniform(0.0, 1.0, (100_000, 3))
    hit = np.zeros(len(shots), bool)
    for point in points:
        hit |= (shots >= point).all(1)
    error = np.sqrt(hit.mean() * (1 - hit.mean()) / len(shots))
    assert abs(hypervolume(points) - hit.mean()) < 5 * error


def test_the_baseline_alone_dominates_a_volume_of_one():
    assert hypervolume([[0.0, 0.0, 0.0]]) == hypervolume([[0.0, 0.0]]) == 1.0


def test_points_beyond_the_reference_count_nothing():
    assert hypervolume([[2.0, 0.0]]) == 0.0
    assert hypervolume([[2.0, -5.0], [0.5, 0.5]]) == 0.25
    assert hypervolume([[2.0, 0.0]], reference=[3.0, 1.0]) == 1.0


def test_the_least_achievement_lies_on_the_front_for_any_weights():
    random = np.random.default_rng(11)
    for _ in range(50):
        points, weights = random.normal(size=(30, 3)), random.uniform(0.05, 1.0, 3)
        best = int(np.argmin([achievement(point, weights) for point in points]))
        assert pareto_front(points)[best]


def test_achievement_reaches_points_in_a_dent_of_the_front():
    """Where a weighted sum never goes."""
    points = [(0.0, 1.0), (0.55, 0.55), (1.0, 0.0)]
    assert min(points, key=lambda point: sum(point)) != points[1]
    assert min(points, key=lambda point: achievement(point, (1.0, 1.0))) == points[1]
    assert achievement(points[1], (1.0, 1.0)) == pytest.approx(0.55 + RHO * 1.1)


def test_costs_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        pareto_front([[1.0, float("nan")]])
