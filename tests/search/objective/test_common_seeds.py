"""Averages over seeds, and the gain from common random numbers on losses of known composition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synaptune.search.objective.common_seeds import (
    average_seeds,
    list_common_seeds,
    measure_common_seeds,
)


def make_losses(candidates: int, seeds: int, *, shared: float, own: float) -> np.ndarray:
    """Losses (candidate, seed) of distant candidates with noise of two kinds.

    One part of the noise is the same for all candidates, the other is independent.
    """
    random = np.random.default_rng(0)
    common, single = (
        random.normal(0, shared, (1, seeds)),
        random.normal(0, own, (candidates, seeds)),
    )
    return np.arange(candidates)[:, None] + common + single


def test_an_average_is_a_mean_with_its_standard_error():
    result = average_seeds(
        [1.0, 2.0, 6.0], [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 5.0}]
    )
    assert result.objective == 3.0
    assert result.standard_error == pytest.approx(math.sqrt(7.0 / 3.0))
    assert result.metrics == {"a": 3.0}
    assert result.to_facts() == {
        "objective_standard_error": result.standard_error,
        "objective_by_seed": [1.0, 2.0, 6.0],
    }


def test_one_seed_has_no_standard_error():
    assert average_seeds([1.5], [{"a": 2.0}])[:3] == (1.5, None, {"a": 2.0})


@pytest.mark.parametrize(
    ("objectives", "metrics"), [([], []), ([1.0], []), ([1.0, math.nan], [{}, {}])]
)
def test_runs_without_a_valid_average_are_refused(objectives, metrics):
    with pytest.raises(ValueError, match="expected"):
        average_seeds(objectives, metrics)


def test_all_candidates_get_the_same_seeds():
    assert list_common_seeds(5, 3) == [5, 6, 7]
    with pytest.raises(ValueError, match="at least 1"):
        list_common_seeds(5, 0)


def test_noise_that_candidates_share_cancels_in_their_differences():
    result = measure_common_seeds(make_losses(40, 80, shared=1.0, own=0.5))
    assert result.common == pytest.approx(2 * 0.25, rel=0.1)
    assert result.different == pytest.approx(2 * (1.0 + 0.25), rel=0.2)
    assert result.ratio == pytest.approx(5.0, rel=0.2)
    assert result.ratio_interval[0] < result.ratio < result.ratio_interval[1]


def test_independent_noise_gives_no_gain():
    assert measure_common_seeds(make_losses(40, 80, shared=0.0, own=0.5)).ratio == pytest.approx(
        1.0, rel=0.05
    )


def test_shared_noise_alone_gives_an_infinite_gain_and_keeps_the_ranks():
    result = measure_common_seeds(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert (result.common, result.ratio, result.rank_correlation) == (0.0, math.inf, 1.0)
    assert result.candidate_deviation == pytest.approx(2.0)


def test_too_few_candidates_are_refused():
    with pytest.raises(ValueError, match="at least"):
        measure_common_seeds([[1.0, 2.0], [1.0, 2.0]])
