"""Paired comparisons against hand-computed values, SciPy and published examples."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from synaptune.analysis.compare import (
    compare,
    compute_improvement,
    hedges_correction,
    holm,
    signed_rank,
)

BEFORE = [10.0, 20.0, 25.0, 40.0]
AFTER = [9.0, 16.0, 24.0, 28.0]  # improvements of 10, 20, 4 and 30 %


def pairs(gains):
    """Return values before and after with these improvements [%]."""
    return [100.0] * len(gains), [100.0 - gain for gain in gains]


def test_the_numbers_of_a_comparison_are_those_worked_out_by_hand():
    comparison = compare(BEFORE, AFTER)
    spread = math.sqrt((6.0**2 + 4.0**2 + 12.0**2 + 14.0**2) / 3.0)
    assert (comparison.count, comparison.mean) == (4, pytest.approx(16.0))
    # t table, 3 degrees of freedom
    assert comparison.high - comparison.mean == pytest.approx(3.1824463 * spread / 2.0)
    assert comparison.mean - comparison.low == pytest.approx(comparison.high - comparison.mean)
    assert comparison.wilcoxon == pytest.approx(2.0 / 16.0)
    # Hedges 1981, table 1, 3 degrees of freedom
    assert comparison.effect == pytest.approx(16.0 / spread * 0.7236, rel=1e-4)


def test_the_t_test_is_the_paired_one_of_scipy():
    comparison = compare(*pairs([3.0, -1.0, 2.5, 0.5, 4.0]))
    assert comparison.p == pytest.approx(stats.ttest_1samp([3.0, -1.0, 2.5, 0.5, 4.0], 0.0).pvalue)


def test_the_mean_and_t_interval_are_those_of_the_gate():
    comparison, gate = compare(BEFORE, AFTER), compute_improvement(BEFORE, AFTER)
    assert (comparison.mean, comparison.low, comparison.high) == tuple(gate)


def test_the_bootstrap_interval_is_the_same_each_time_and_leans_to_the_long_tail():
    gains = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 9.0]
    comparison = compare(*pairs(gains))
    assert comparison == compare(*pairs(gains))
    assert comparison.high - comparison.mean == pytest.approx(comparison.mean - comparison.low)
    assert comparison.boot_high - comparison.mean > 1.5 * (comparison.mean - comparison.boot_low)
    assert min(gains) <= comparison.boot_low < comparison.boot_high <= max(gains)


def test_two_pairs_have_intervals_and_no_effect():
    comparison = compare(*pairs([1.0, 3.0]))
    assert (comparison.boot_low, comparison.boot_high) == (pytest.approx(1.0), pytest.approx(3.0))
    assert comparison.low < 1.0
    assert comparison.effect is None
    assert comparison.wilcoxon == pytest.approx(0.5)


def test_equal_differences_have_intervals_of_no_width():
    comparison = compare([10.0, 10.0, 10.0], [9.0, 9.0, 9.0])
    assert (
        comparison.low
        == comparison.high
        == comparison.boot_low
        == comparison.boot_high
        == comparison.mean
        == pytest.approx(10.0)
    )
    assert (comparison.p, comparison.effect) == (0.0, None)
    unchanged = compare([10.0, 12.0], [10.0, 12.0])
    assert (unchanged.mean, unchanged.p, unchanged.wilcoxon, unchanged.effect) == (
        0.0,
        1.0,
        None,
        None,
    )


def test_nearly_equal_differences_still_have_finite_intervals():
    comparison = compare([10.0] * 4, [9.0, 9.0, 9.0, 9.0 + 1e-14])
    assert all(
        math.isfinite(value)
        for value in (
            comparison.boot_low,
            comparison.boot_high,
            comparison.low,
            comparison.high,
            comparison.p,
        )
    )


@pytest.mark.parametrize(
    ("before", "after"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([0.0, 1.0], [1.0, 1.0])]
)
def test_what_cannot_be_compared_is_refused(before, after):
    with pytest.raises(ValueError, match="expected"):
        compare(before, after)


def test_the_signed_rank_test_is_scipys_without_ties():
    rng = np.random.default_rng(0)
    for count in (2, 3, 6, 11, 25):
        differences = rng.normal(0.4, 1.0, count).tolist()
        assert signed_rank(differences) == pytest.approx(
            stats.wilcoxon(differences, method="exact").pvalue
        )


def test_the_signed_rank_test_counts_every_sign_when_there_are_ties():
    differences = [1.0, 1.0, -2.0, 2.0, 3.0, 0.0, 1.0]
    nonzero = [value for value in differences if value]
    ranks = stats.rankdata([abs(value) for value in nonzero])
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(nonzero))
    ]
    positive_sum = sum(rank for rank, value in zip(ranks, nonzero, strict=True) if value > 0)
    upper, lower = (
        sum(value >= positive_sum for value in sums),
        sum(value <= positive_sum for value in sums),
    )
    assert signed_rank(differences) == pytest.approx(min(1.0, 2.0 * min(upper, lower) / len(sums)))


@pytest.mark.parametrize(
    ("degrees", "factor"), [(2, 0.5642), (3, 0.7236), (4, 0.7979), (10, 0.9228), (50, 0.9849)]
)
def test_the_correction_for_few_pairs_is_that_of_hedges_table(degrees, factor):
    assert hedges_correction(degrees) == pytest.approx(factor, abs=6e-5)


def test_holm_adjusts_step_by_step_and_keeps_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_claims_of_a_family_at_the_level():
    rng, families = np.random.default_rng(1), 2000
    false_claims = sum(min(holm(rng.random(10).tolist())) < 0.05 for _ in range(families))
    low, high = stats.binom.ppf([0.001, 0.999], families, 1.0 - (1.0 - 0.05 / 10) ** 10)
    assert low <= false_claims <= high


def test_the_t_interval_covers_the_true_mean_as_often_as_it_says():
    rng, repeats, hits = np.random.default_rng(2), 2000, 0
    for _ in range(repeats):
        improvement = compute_improvement(*pairs(rng.normal(2.0, 1.0, 5).tolist()))
        hits += improvement.low <= 2.0 <= improvement.high
    low, high = stats.binom.ppf([0.001, 0.999], repeats, 0.95)
    assert low <= hits <= high
