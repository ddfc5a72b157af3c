"""The checks before a search."""

import pytest

from synaptune.search.sanity import check_objective, check_optimizer, rosenbrock


def test_rosenbrock_has_its_minimum_at_one():
    assert rosenbrock([1.0] * 10) == 0.0
    assert rosenbrock([0.0, 0.0]) == 1.0
    assert rosenbrock([2.0, 1.0]) == pytest.approx(901.0)


def test_cma_solves_rosenbrock_and_random_search_does_not():
    assert check_optimizer("cma", 1).is_solved
    random = check_optimizer("random", 1)
    assert not random.is_solved
    assert random.attempts > 1


def test_a_clear_signal_passes():
    assert (
        check_objective([2.0, 2.01, 1.99], [2.1, 2.4, 1.9, 2.2], [[2.1, 2.1, 2.11]], 3.2).faults
        == []
    )


def test_noise_that_all_candidates_share_is_reported_apart_from_the_spread_over_seeds():
    signal = check_objective(
        [2.0, 2.5, 1.5], [2.1, 2.2, 1.9, 2.0], [[2.1, 2.6, 1.6], [2.2, None, 1.7]], None
    )
    assert signal.spread_over_seeds == pytest.approx(0.5)
    assert signal.noise == pytest.approx(0.0, abs=1e-12)
    assert signal.faults[0].startswith("noise")


@pytest.mark.parametrize(
    ("defaults", "candidates", "repeated", "word"),
    [
        ([3.1, 3.11, 3.09], [3.4, 2.9, 3.3, 3.0], [3.4, 3.41, 3.4], "steps"),
        ([2.0, 2.2, 1.8], [2.0, 2.1, 2.05, 1.9], [2.0, 1.8, 2.2], "noise"),
        ([2.0, 2.001, 1.999], [2.0, 2.0005, 2.0, 2.0002], [2.0, 1.999, 2.001], "range"),
        ([2.0, 2.01, 1.99], [None, None, None, 2.2], [None, 2.0, 2.0], "range"),
    ],
)
def test_a_missing_signal_is_reported_with_its_cause(defaults, candidates, repeated, word):
    (fault,) = check_objective(defaults, candidates, [repeated], 3.2).faults
    assert fault.startswith(word)
