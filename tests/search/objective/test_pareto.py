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


def is_dominated(points: np.ndarray, index: int) -> bool:
    point = points[index]
    return any((other <= point).all() and (other < point).any() for other in points)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_the_front_is_what_nothing_dominates(axes):
    # Small integers: many ties and duplicates.
    points = np.random.default_rng(axes).integers(0, 6, (60, axes)).astype(float)
    assert list(pareto_front(points)) == [
        not is_dominated(points, index) for index in range(len(points))
    ]


def test_equal_points_stay_on_the_front_together():
    assert list(pareto_front([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])) == [True, True, False]


def compute_exact_volume(points: np.ndarray, reference: np.ndarray) -> float:
    """Inclusion and exclusion over all sets of points: 2^n terms."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for subset in itertools.combinations(points, count):
            total -= (-1) ** count * float(
                np.prod(np.clip(reference - np.max(subset, axis=0), 0.0, None))
            )
    return total


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_hypervolume_is_exact(axes, seed):
    random = np.random.default_rng(seed)
    points = random.uniform(-1.0, 1.3, (9, axes))  # some lie beyond the reference
    points[3] = points[1]
    points[4, 0] = points[5, 0]
    assert hypervolume(points) == pytest.approx(
        compute_exact_volume(points, np.ones(axes)), rel=1e-12
    )


def test_the_hypervolume_of_many_points_agrees_with_random_sampling():
    random = np.random.default_rng(7)
    points = random.uniform(0.0, 1.0, (40, 3))
    samples = random.uniform(0.0, 1.0, (100_000, 3))
    hits = np.zeros(len(samples), bool)
    for point in points:
        hits |= (samples >= point).all(1)
    error = np.sqrt(hits.mean() * (1 - hits.mean()) / len(samples))
    assert abs(hypervolume(points) - hits.mean()) < 5 * error


def test_the_baseline_alone_dominates_a_volume_of_one():
    assert hypervolume([[0.0, 0.0, 0.0]]) == hypervolume([[0.0, 0.0]]) == 1.0


def test_points_beyond_the_reference_contribute_nothing():
    assert hypervolume([[2.0, 0.0]]) == 0.0
    assert hypervolume([[2.0, -5.0], [0.5, 0.5]]) == 0.25
    assert hypervolume([[2.0, 0.0]], reference=[3.0, 1.0]) == 1.0


def test_the_minimum_of_the_achievement_lies_on_the_front_for_any_weights():
    random = np.random.default_rng(11)
    for _ in range(50):
        points, weights = random.normal(size=(30, 3)), random.uniform(0.05, 1.0, 3)
        best = int(np.argmin([achievement(point, weights) for point in points]))
        assert pareto_front(points)[best]


def test_achievement_finds_points_on_a_concave_part_of_the_front():
    """A weighted sum never finds them."""
    points = [(0.0, 1.0), (0.55, 0.55), (1.0, 0.0)]
    assert min(points, key=lambda point: sum(point)) != points[1]
    assert min(points, key=lambda point: achievement(point, (1.0, 1.0))) == points[1]
    assert achievement(points[1], (1.0, 1.0)) == pytest.approx(0.55 + RHO * 1.1)


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        pareto_front([[1.0, float("nan")]])
