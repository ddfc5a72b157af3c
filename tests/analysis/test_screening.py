"""The designed experiment over many parameters, and its effects."""

import json

import numpy as np
import pytest

from synaptune.analysis.screening import (
    analyse_screen,
    from_note,
    group_by_subsystem,
    make_hadamard,
    plan_screen,
    to_note,
    to_points,
)
from synaptune.search.space.space import Dimension, Space

NAMES = [f"synapse.{'ab'[index % 2]}.p{index}" for index in range(48)]


def simulate(plan, effects, *, noise=0.0, interaction=0.0, seed=0):
    stream = np.random.default_rng(seed)
    x = plan.signs
    losses = 2.0 + x @ np.array(effects) / 2.0 + interaction / 2.0 * x[:, 0] * x[:, 1]
    return (losses + noise * stream.standard_normal(len(x))).tolist()


def plant(**effects):
    planted = np.zeros(48)
    for index, effect in effects.items():
        planted[int(index[1:])] = effect
    return planted


@pytest.mark.parametrize("order", [4, 8, 12, 24, 48, 60, 96])
def test_a_hadamard_matrix_has_orthogonal_rows(order):
    matrix = make_hadamard(order)
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


def test_a_fold_over_pairs_each_run_with_its_mirror_on_one_seed():
    plan = plan_screen(48, 100, 3)
    assert plan.signs.shape == (96, 48)
    assert plan.is_folded
    assert np.array_equal(plan.signs[0::2], -plan.signs[1::2])
    assert list(plan.blocks[0::2]) == list(plan.blocks[1::2]) == list(range(48))
    assert np.array_equal(plan.signs.T @ plan.signs, 96 * np.eye(48))


@pytest.mark.parametrize(("parameters", "runs"), [(48, 64), (48, 8), (10, 12), (3, 6), (1, 4)])
def test_a_plan_keeps_to_its_runs_and_is_balanced(parameters, runs):
    plan = plan_screen(parameters, runs, 0)
    assert 4 <= len(plan.signs) <= runs
    assert np.all(plan.signs.sum(axis=0) == 0)
    again = plan_screen(parameters, runs, 0)
    assert np.array_equal(plan.signs, again.signs)
    assert not np.array_equal(plan.signs, plan_screen(parameters, runs, 1).signs)


def test_effects_without_noise_are_exact_and_free_of_interactions():
    plan = plan_screen(48, 100, 0)
    planted = plant(_0=0.04, _1=-0.02, _7=0.01)
    screening = analyse_screen(plan, NAMES, simulate(plan, planted, interaction=0.05))
    found = {effect.name: effect.effect for effect in screening.effects}
    assert [found[name] for name in NAMES] == pytest.approx(planted, abs=1e-12)
    assert [effect.name for effect in screening.effects[:3]] == [NAMES[0], NAMES[1], NAMES[7]]
    pair = max(screening.interactions, key=lambda pair: abs(pair.effect))
    assert {pair.first, pair.second} == {NAMES[0], NAMES[1]}
    assert pair.effect == pytest.approx(0.05)


def test_intervals_cover_and_false_positives_are_rare():
    covered, false, chosen = [], 0, 0
    planted = plant(_0=0.04, _1=0.02)
    for seed in range(60):
        plan = plan_screen(48, 100, seed)
        screening = analyse_screen(plan, NAMES, simulate(plan, planted, noise=0.03, seed=seed))
        for effect in screening.effects:
            true = planted[NAMES.index(effect.name)]
            covered.append(effect.low <= true <= effect.high)
            false += effect.adjusted_p < 0.05 and true == 0.0
            chosen += effect.chosen and true == 0.04
    assert 0.92 < np.mean(covered) < 0.98
    assert false / 60 < 0.15
    assert chosen >= 59


def test_a_failed_run_costs_its_pair_and_too_many_are_refused():
    plan = plan_screen(48, 100, 0)
    losses = simulate(plan, plant(_0=0.04), noise=0.01)
    losses[4] = None
    screening = analyse_screen(plan, NAMES, losses)
    assert (screening.runs, screening.failed) == (94, 1)
    assert screening.effects[0].name == NAMES[0]
    assert analyse_screen(plan, NAMES, [None] * 60 + losses[60:]) is None


def test_levels_lie_half_way_to_the_ends():
    space = Space((Dimension("x", "lin", 0.0, 1.0, start=0.2), Dimension("y", "lin", 0.0, 1.0)))
    points = to_points(plan_screen(2, 8, 0), space)
    assert {point[0] for point in points} == {0.1, 0.6}
    assert {point[1] for point in points} == {0.25, 0.75}


def test_a_screening_survives_its_storage_and_names_the_subsystem_that_matters():
    plan = plan_screen(48, 100, 0)
    losses = simulate(plan, plant(_0=0.08, _1=0.03), noise=0.02)
    screening = analyse_screen(plan, NAMES, losses)
    assert from_note(json.loads(json.dumps(to_note(screening)))) == screening
    shares = group_by_subsystem(screening)
    assert next(iter(shares)) == "a"
    assert sum(shares.values()) == pytest.approx(1.0)
