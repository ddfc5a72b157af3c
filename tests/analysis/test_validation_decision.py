"""Paired statistics against SciPy, and the rule of the gate."""

import numpy as np
import pytest
from scipy import stats

from synaptune.analysis.compare import Improvement, compute_improvement
from synaptune.analysis.validation import decide


def test_the_interval_is_scipys_paired_t_interval():
    rng = np.random.default_rng(0)
    before = rng.uniform(8.0, 12.0, 5)
    after = before * rng.uniform(0.8, 1.0, 5)
    gains = 100.0 * (before - after) / before
    test = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
    improvement = compute_improvement(before, after)
    assert improvement == pytest.approx((gains.mean(), test.low, test.high))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        gains = rng.normal(6.0, 2.0, 5)
        improvement = compute_improvement(np.full(5, 10.0), 10.0 * (1.0 - gains / 100.0))
        hits += improvement.low <= 6.0 <= improvement.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_equal_runs_improve_by_nothing():
    assert compute_improvement([3.0, 4.0], [3.0, 4.0]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("before", "after"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([0.0, 1.0], [1.0, 1.0])]
)
def test_what_cannot_be_compared_is_refused(before, after):
    with pytest.raises(ValueError, match="expected"):
        compute_improvement(before, after)


@pytest.mark.parametrize(
    ("mean", "low", "gini", "word"),
    [
        (12.0, 8.0, None, "proceed"),
        (12.0, -1.0, None, "re-evaluate"),
        (10.0, 8.0, 0.0, "re-evaluate"),
        (7.0, 5.0, 12.0, "proceed"),
        (7.0, 5.0, 3.0, "re-evaluate"),
        (7.0, 5.0, None, "re-evaluate"),
        (7.0, -5.0, 12.0, "re-evaluate"),
        (5.0, 4.0, None, "re-evaluate"),
        (4.9, 4.0, 50.0, "stop"),
        (-3.0, -5.0, None, "stop"),
    ],
)
def test_the_decision_follows_the_rule(mean, low, gini, word):
    assert decide(Improvement(mean, low, 2 * mean - low), gini).action == word


@pytest.mark.parametrize(
    ("mean", "reason"),
    [
        (-3.7, "perplexity worsened by 3.7 %"),
        (3.7, "perplexity improved by 3.7 %, below the 5 % that the plan requires"),
    ],
)
def test_the_reason_says_whether_perplexity_worsened(mean, reason):
    assert decide(Improvement(mean, mean - 1.0, mean + 1.0), None).reason == reason
