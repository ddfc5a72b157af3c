"""The power law against known laws, its bounds, and the coverage of its interval."""

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
    result = extrapolate(law(STEPS, a, b, c), 1000)
    assert result is not None
    assert result.mean == pytest.approx(a + b * 1000**-c, abs=2e-4)
    assert result.standard_error < 1e-3


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
    fit, target = fit_power_law(points), 400.0
    assert fit is not None
    assert fit.c == pytest.approx(general[2], rel=1e-3)
    prediction = fit.predict(target)
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
        result = extrapolate(noisy, 200)
        assert result is not None
        low, high = result.interval()
        inside += low <= 2.0 + 8.0 * 200**-0.7 + random.normal(0, 0.02) <= high
    assert 0.88 <= inside / 200 <= 1.0


def test_too_few_points_give_no_prediction():
    assert extrapolate(law(STEPS[: LEAST_POINTS - 1], 2.0, 5.0, 0.5), 100) is None
    assert extrapolate(law(STEPS[:LEAST_POINTS], 2.0, 5.0, 0.5), 100) is not None


def test_losses_below_zero_give_no_prediction():
    assert extrapolate(law(STEPS, -2.0, 5.0, 0.5), 100) is None


@pytest.mark.parametrize("seed", range(20))
def test_for_any_points_the_law_is_finite_never_rises_and_is_never_negative(seed):
    random = np.random.default_rng(seed)
    points = [
        (step, float(loss))
        for step, loss in zip(STEPS, random.lognormal(0.0, 2.0, len(STEPS)), strict=True)
    ]
    result = fit_power_law(points)
    assert result is not None
    assert EXPONENT_LOW <= result.c <= EXPONENT_HIGH
    means = [result.predict(step).mean for step in (*STEPS, 200, 1000, 10**6)]
    assert all(math.isfinite(mean) and mean >= 0.0 for mean in means)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(means))
    assert all(math.isfinite(result.predict(step).standard_error) for step in (200, 10**6))


@pytest.mark.parametrize(
    "losses", [[2.0] * 8, [float(number) for number in range(1, 9)]], ids=["flat", "rising"]
)
def test_a_curve_that_does_not_fall_is_expected_to_stay_at_its_mean(losses):
    result = extrapolate(list(zip(STEPS, losses, strict=True)), 1000)
    assert result is not None
    assert result.mean == pytest.approx(np.mean(losses))


def test_the_order_of_points_does_not_matter():
    points = law(STEPS, 2.0, 5.0, 0.5)
    assert extrapolate(points[::-1], 200) == extrapolate(points, 200)


@pytest.mark.parametrize(
    "point", [(0, 3.0), (10, 3.0), (15, math.nan)], ids=["step zero", "a step twice", "nan"]
)
def test_invalid_points_are_refused(point):
    with pytest.raises(ValueError, match="positive, distinct steps with finite losses"):
        extrapolate([*law(STEPS, 2.0, 5.0, 0.5), point], 200)


def test_a_pruned_run_gets_its_extrapolated_loss_and_never_its_last_one():
    curve = [[step, loss] for step, loss in law(STEPS, 2.0, 5.0, 0.5)]
    last = curve[-1][1]
    result = extrapolate_result(
        {"val_loss": last, "val_perplexity": math.exp(last), "expert_gini": 0.2}, curve, 400
    )
    assert result["val_loss"] == pytest.approx(2.25, abs=1e-3)
    assert result["val_perplexity"] == pytest.approx(math.exp(2.25), rel=1e-3)
    assert (result["pruned_val_loss"], result["expert_gini"]) == (last, 0.2)


def test_a_pruned_run_with_a_short_curve_has_no_extrapolated_loss():
    result = extrapolate_result(
        {"val_loss": 3.0, "val_perplexity": 20.0}, [[10, 4.0], [20, 3.0]], 400
    )
    assert result == {"pruned_val_loss": 3.0}


def test_errors_agree_with_values_computed_by_hand():
    exact = Prediction(1.0, 0.1, 5)
    result = measure_errors([exact, Prediction(2.5, 0.1, 5), 3.0], [1.0, 2.0, 4.0])
    assert (result.mean, result.rmse) == pytest.approx((-0.5 / 3, math.sqrt(1.25 / 3)))
    assert result.coverage == 0.5
    assert result.rank_correlation == 1.0
    assert result.spread == pytest.approx(math.sqrt(result.rmse**2 - result.mean**2))
    assert measure_errors([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).coverage is None


def test_errors_of_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        measure_errors([1.0, 2.0], [1.0, 2.0, 3.0])
