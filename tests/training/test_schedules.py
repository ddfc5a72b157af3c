"""The learning rate by step."""

from __future__ import annotations

import itertools

import pytest

from synaptune.training.config import TrainingConfig
from synaptune.training.schedules import get_evaluation_steps, learning_rate

CONFIG = TrainingConfig(
    steps=100, learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.2, evaluations=3
)


def test_the_rate_rises_to_its_peak_and_falls_to_its_final_fraction():
    rates = [learning_rate(step, CONFIG) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.6)  # half way down
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_a_run_of_one_step_has_a_learning_rate():
    assert learning_rate(1, TrainingConfig(steps=1, learning_rate=1.0)) == 1.0


def test_validations_are_evenly_spaced_and_the_last_is_at_the_last_step():
    assert get_evaluation_steps(CONFIG) == [33, 67, 100]
    assert get_evaluation_steps(TrainingConfig(steps=2, evaluations=5)) == [1, 2]
