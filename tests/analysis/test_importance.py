"""Importances with losses so large that they dominate the variance or break the surrogates."""

import math
import random
import sys

import pytest

from helpers.real_studies import make_study
from synaptune.analysis.importance import compute_importances

NAMES = ("much", "little")


def penalised(penalty, direction):
    sign = -1.0 if direction == "maximize" else 1.0
    return lambda p: (
        sign * (penalty if p["little"] > 0.9 else 1.0 + 3.0 * p["much"] + 0.1 * p["little"])
    )


@pytest.mark.parametrize(
    ("penalty", "direction"),
    [(1e9, "minimize"), (1e200, "maximize"), (sys.float_info.max, "minimize")],
)
def test_a_huge_penalty_leaves_the_other_parameter_its_share(tmp_path, penalty, direction):
    snapshot = make_study(
        tmp_path / "huge",
        penalised(penalty, direction),
        NAMES,
        trials=50,
        sampler="random",
        direction=direction,
    )
    importances = {
        entry.name: entry
        for entry in compute_importances(
            snapshot, snapshot.spaces["search"], snapshot.search_trials
        )
    }
    assert sum(entry.fanova for entry in importances.values()) == pytest.approx(1.0)
    assert importances["much"].fanova > 0.01
    assert all(math.isfinite(entry.ped_anova) for entry in importances.values())


def test_losses_that_no_surrogate_can_take_have_no_shares(tmp_path):
    def mostly(p):
        return (
            sys.float_info.max * (0.5 + 0.5 * p["much"])
            if p["little"] > 0.2
            else -sys.float_info.max * p["much"]
        )

    snapshot = make_study(tmp_path / "most", mostly, NAMES, trials=40, sampler="random")
    importances = compute_importances(snapshot, snapshot.spaces["search"], snapshot.search_trials)
    assert all(
        share is None or math.isfinite(share)
        for entry in importances
        for share in (entry.fanova, entry.ped_anova)
    )


@pytest.mark.parametrize("has_effect", [True, False])
def test_importances_are_compared_with_those_of_shuffled_losses(tmp_path, has_effect):
    draw = random.Random(1)

    def noisy(p):
        return (p["much"] if has_effect else 0.0) + draw.gauss(0.0, 0.05)

    snapshot = make_study(tmp_path / "noisy", noisy, NAMES, trials=60, sampler="random")
    importances = compute_importances(snapshot, snapshot.spaces["search"], snapshot.search_trials)
    largest = max(importances, key=lambda entry: entry.fanova)
    assert (largest.fanova > largest.floor) is has_effect
    assert all((entry.ped_anova is not None) is has_effect for entry in importances)
    for entry in importances:
        low, high = entry.fanova_spread
        assert 0.0 <= low < high <= 1.0
