"""The power law against known laws, its bounds, and the honesty of its interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from synaptune.search.objective.learning_curve import (
    EXPONENT_HIGH,
    EXPONENT_LOW,
    LEAST_POINTS,
    Prediction,
    extrapolate,
    extrapolate_result,
    fit_power_law,
    measure_errors,
)

STEPS = [10, 20, 30, 40, 50, 60, 80, 100]


def law(steps, a: float, b: float, c: float) -> list[tuple[float, float]]:
    return [(step, a + b * step**-c) for step in steps]


@pytest.mark.parametrize(
    ("a", "b", "c"), [(2.0, 5.0, 0.5), (0.0, 4.0, 0.1), (1.5, 30.0, 1.0), (2.2, 100.0, 2.0)]
)
def test_an_exact_power_law_is_found(a, b, c):
    found = extrapolate(law(STEPS, a, b, c), 1000)
    assert found is not None
    assert found.mean == pytest.approx(a + b * 1000**-c, abs=2e-4)
    assert found.standard_error < 1e-3


def test_the_exponent_agrees_with_a_general_least_squares_routine():
    from scipy.optimize import curve_fit

    random = np.random.default_rng(0)
    points = [
        (step, loss + random.normal(0, 0.01))
        for step, loss in law(range(10, 210, 10), 2.0, 5.0, 0.6)
    ]
    steps, losses = map(np.array, zip(*points, strict=True))
    general, covariance = curve_fit(
        lambda t, a, b, c: a + b * t**-c, steps, losses, p0=(2.0, 5.0, 0.6)
    )
    ours, target = fit_power_law(points), 400.0
    assert ours is not None
    assert ours.c == pytest.approx(general[2], rel=1e-3)
    prediction = ours.predict(target)
    assert prediction.mean == pytest.approx(
        general[0] + general[1] * target ** -general[2], abs=1e-5
    )
    slope = np.array(
        [1.0, target ** -general[2], -general[1] * target ** -general[2] * math.log(target)]
    )
    scatter = float(np.square(losses - (general[0] + general[1] * steps ** -general[2])).sum()) / (
        len(steps) - 3
    )
    assert prediction.standard_error == pytest.approx(
        math.sqrt(scatter + slope @ covariance @ slope), rel=1e-3
    )


def test_the_interval_holds_as_often_as_it_says():
    random, inside = np.random.default_rng(1), 0
    for _ in range(200):
        noisy = [
            (step, loss + random.normal(0, 0.02))
            for step, loss in law(range(20, 110, 10), 2.0, 8.0, 0.7)
        ]
        found = extrapolate(noisy, 200)
        assert found is not None
        low, high = found.interval()
        inside += low <= 2.0 + 8.0 * 200**-0.7 + random.normal(0, 0.02) <= high
    assert 0.88 <= inside / 200 <= 1.0


def test_too_few_points_say_nothing():
    assert extrapolate(law(STEPS[: LEAST_POINTS - 1], 2.0, 5.0, 0.5), 100) is None
    assert extrapolate(law(STEPS[:LEAST_POINTS], 2.0, 5.0, 0.5), 100) is not None


def test_losses_below_zero_follow_no_such_law():
    assert extrapolate(law(STEPS, -2.0, 5.0, 0.5), 100) is None


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_points_the_law_is_finite_never_rises_and_never_goes_below_zero(seed):
    random = np.random.default_rng(seed)
    points = [
        (step, float(loss))
        for step, loss in zip(STEPS, random.lognormal(0.0, 2.0, len(STEPS)), strict=True)
    ]
    found = fit_power_law(points)
    assert found is not None
    assert EXPONENT_LOW <= found.c <= EXPONENT_HIGH
    means = [found.predict(step).mean for step in (*STEPS, 200, 1000, 10**6)]
    assert all(math.isfinite(mean) and mean >= 0.0 for mean in means)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(means))
    assert all(math.isfinite(found.predict(step).standard_error) for step in (200, 10**6))


@pytest.mark.parametrize(
    "losses", [[2.0] * 8, [float(number) for number in range(1, 9)]], ids=["flat", "rising"]
)
def test_a_curve_that_does_not_fall_is_expected_to_stay_at_its_mean(losses):
    found = extrapolate(list(zip(STEPS, losses, strict=True)), 1000)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(losses))


def test_the_order_of_points_does_not_matter():
    points = law(STEPS, 2.0, 5.0, 0.5)
    assert extrapolate(points[::-1], 200) == extrapolate(points, 200)


@pytest.mark.parametrize(
    "wrong", [(0, 3.0), (10, 3.0), (15, math.nan)], ids=["step zero", "a step twice", "no number"]
)
def test_points_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="positive steps, each once, with finite losses"):
        extrapolate([*law(STEPS, 2.0, 5.0, 0.5), wrong], 200)


def test_a_pruned_run_is_told_where_it_was_heading_and_never_its_last_loss():
    curve = [[step, loss] for step, loss in law(STEPS, 2.0, 5.0, 0.5)]
    last = curve[-1][1]
    found = extrapolate_result(
        {"val_loss": last, "val_perplexity": math.exp(last), "expert_gini": 0.2}, curve, 400
    )
    assert found["val_loss"] == pytest.approx(2.25, abs=1e-3)
    assert found["val_perplexity"] == pytest.approx(math.exp(2.25), rel=1e-3)
    assert (found["pruned_val_loss"], found["expert_gini"]) == (last, 0.2)


def test_a_pruned_run_with_a_short_curve_has_no_loss_to_tell():
    found = extrapolate_result(
        {"val_loss": 3.0, "val_perplexity": 20.0}, [[10, 4.0], [20, 3.0]], 400
    )
    assert found == {"pruned_val_loss": 3.0}


def test_errors_are_those_worked_out_by_hand():
    exact = Prediction(1.0, 0.1, 5)
    found = measure_errors([exact, Prediction(2.5, 0.1, 5), 3.0], [1.0, 2.0, 4.0])
    assert (found.mean, found.rmse) == pytest.approx((-0.5 / 3, math.sqrt(1.25 / 3)))
    assert found.coverage == 0.5
    assert found.rank_correlation == 1.0
    assert found.spread == pytest.approx(math.sqrt(found.rmse**2 - found.mean**2))
    assert measure_errors([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).coverage is None


def test_errors_of_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        measure_errors([1.0, 2.0], [1.0, 2.0, 3.0])
