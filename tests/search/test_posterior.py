"""The recommended point of a noisy search."""

import numpy as np
import pytest

from synaptune.search.posterior import MIN_POINTS, fit_posterior, recommend


def make_search(seed, *, count=40, noise=0.03, size=6):
    """Points and losses of which one coordinate matters."""
    stream = np.random.default_rng(seed)
    units = [tuple(row) for row in stream.random((count, size)).tolist()]
    true = [0.2 * (unit[0] - 0.7) ** 2 / 0.49 for unit in units]
    losses = [value + noise * stream.standard_normal() for value in true]
    return units, true, losses


def test_the_recommended_point_is_better_than_the_luckiest_loss():
    regrets = []
    for seed in range(24):
        units, true, losses = make_search(seed)
        regrets.append((true[recommend(units, losses).index], true[int(np.argmin(losses))]))
    recommended, luckiest = np.mean(regrets, axis=0)
    assert recommended < 0.9 * luckiest


def test_the_posterior_knows_noise_and_shrinks_the_best_loss():
    units, _, losses = make_search(1, count=80)
    posterior = fit_posterior(units, losses)
    assert posterior.noise == pytest.approx(0.03, rel=0.4)
    assert posterior.mean.min() > min(losses)
    assert np.all(posterior.deviation < 0.03)


def test_a_diverged_run_does_not_decide():
    units, true, losses = make_search(2)
    found = recommend(units, [*losses[:-1], 1e30])
    assert true[found.index] < 0.02


def test_few_points_or_equal_losses_are_no_model_and_no_error():
    units, _, losses = make_search(3, count=MIN_POINTS - 1)
    found = recommend(units, losses)
    assert (found.index, found.deviation) == (int(np.argmin(losses)), None)
    assert recommend(units * 2, [1.0] * (2 * len(units))).mean == pytest.approx(1.0)


def test_the_same_search_gives_the_same_recommendation():
    units, _, losses = make_search(4)
    assert recommend(units, losses) == recommend(units, losses)


def test_the_score_counts_the_deviation_and_a_part_of_the_loss():
    units, _, losses = make_search(5)
    posterior = fit_posterior(units, losses)
    bound = posterior.mean + 2 * posterior.deviation
    assert posterior.scores == pytest.approx(bound + (losses - bound) / 8)
    assert recommend(units, losses).index == np.argmin(posterior.scores)
