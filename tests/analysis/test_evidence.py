"""A study whose truth is known: the analysis finds it."""

import itertools
import statistics
from dataclasses import replace

import pytest
from scipy.stats import binom

from helpers.real_studies import make_study
from synaptune.analysis.convergence import _make_random_curve, compute_convergence
from synaptune.analysis.correlation import rank_pairs, simulate_null
from synaptune.analysis.evidence import gather_evidence
from synaptune.search.optimizers.base import Engine
from synaptune.search.space.space import Dimension, Space
from synaptune.study.reader import find_study

WEIGHTS = {"first": 3.0, "second": 2.0, "third": 1.0, "idle": 0.0}


def linear(p):
    return sum(weight * p[name] for name, weight in WEIGHTS.items())


def valley(p):
    """Two parameters of which only the sum matters, and a third."""
    return 10 * (p["left"] + p["right"] - 1.0) ** 2 + (p["third"] - 0.6) ** 2


def test_the_shares_of_a_linear_objective_are_recovered(tmp_path):
    """Over independent uniform points the shares of the variance are the squares of the weights."""
    found = gather_evidence(
        make_study(tmp_path / "linear", linear, tuple(WEIGHTS), trials=250, sampler="random")
    )
    total = sum(weight**2 for weight in WEIGHTS.values())
    fanova = {entry.name: entry.fanova for entry in found.importances}
    for name, weight in WEIGHTS.items():
        assert fanova[name] == pytest.approx(weight**2 / total, abs=0.12)
    ped = {entry.name: entry.ped_anova for entry in found.importances}
    assert sorted(WEIGHTS, key=lambda name: -ped[name])[:2] == ["first", "second"]
    assert {effect.name for effect in found.effects if effect.significant} == {
        "first",
        "second",
        "third",
    }


def test_a_valley_is_seen_as_a_correlation_that_noise_alone_does_not_give(tmp_path):
    record = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=140)
    found = gather_evidence(record, deep=False)
    space = record.spaces["search"]
    together = rank_pairs(
        space, found.correlation, simulate_null(record.engine, space, len(found.generations))
    )
    assert {together[0].first, together[0].second} == {"left", "right"}
    assert together[0].correlation < -0.8
    assert together[0].adjusted_p < 0.05
    assert all(pair.adjusted_p > 0.05 for pair in together[1:])


def test_the_correlations_of_searches_that_know_no_loss_are_no_finding():
    """Judged against blind searches, the promised share of idle ones shows a pair, and no more."""
    space = Space(tuple(Dimension(name, "lin", start=0.5) for name in "abc"))
    many = simulate_null(Engine("cma", 0), space, 8, count=159)
    null, judged = many[:59], many[59:]
    shown = sum(rank_pairs(space, correlation, null)[0].adjusted_p < 0.05 for correlation in judged)
    assert shown <= binom.ppf(
        0.999, len(judged), 0.1
    )  # among 59 the level itself is known only to be some 3 to 9 %


def test_expected_best_of_random_points_is_the_mean_over_all_choices_of_them():
    losses = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    found = _make_random_curve(losses, "here")
    assert list(found.k) == [1, 2, 3, 4, 5, 6]
    for k, best, low, high in zip(found.k, found.best, found.low, found.high, strict=True):
        minima = sorted(min(chosen) for chosen in itertools.combinations(losses, k))
        assert best == pytest.approx(statistics.fmean(minima))
        assert low == minima[max(0, -(-len(minima) // 10) - 1)]
        assert high == minima[-(-9 * len(minima) // 10) - 1]


def test_the_course_never_rises_and_ends_at_the_best(tmp_path):
    record = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=40)
    found = compute_convergence(record)
    assert found.evaluation[-1] == 40
    assert all(later <= earlier for earlier, later in itertools.pairwise(found.best))
    assert found.best[-1] == min(trial.objective for trial in record.trials)
    assert all(later >= earlier for earlier, later in itertools.pairwise(found.hours))


def test_a_pause_of_the_controller_is_left_out_of_the_hours(tmp_path):
    from datetime import timedelta

    record = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=20)
    late = {
        number: end + timedelta(hours=5) if number >= 10 else end
        for number, end in record.end_times.items()
    }
    trials = [replace(trial, facts=trial.facts | {"seconds": 1.0}) for trial in record.trials]
    found = compute_convergence(replace(record, end_times=late, trials=trials))
    assert found.hours[-1] < 0.1


def test_a_maximised_study_is_read_as_one(tmp_path):
    record = make_study(
        tmp_path / "up",
        lambda p: -valley(p),
        ("left", "right", "third"),
        trials=40,
        direction="maximize",
    )
    found = gather_evidence(record, deep=False)
    assert found.maximize
    assert found.best.objective == max(trial.objective for trial in record.trials)
    assert found.convergence.best[-1] == -found.best.objective


def test_a_study_that_has_only_begun_has_evidence_of_nothing(tmp_path):
    def interrupted(p):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_study(tmp_path / "begun", interrupted, ("a", "b"), trials=10)
    found = gather_evidence(find_study(str(tmp_path / "begun")))
    assert found.best is None
    assert found.validation is None
    assert found.convergence is None
    assert found.effects == []
    assert len(found.trials) == 1


def test_random_points_are_a_comparison_only_for_the_same_objective(tmp_path):
    record = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=40)
    alike = make_study(
        tmp_path / "random", valley, ("left", "right", "third"), trials=30, sampler="random"
    )
    assert gather_evidence(record, against=alike, deep=False).random_curve.count == 30
    unlike = make_study(
        tmp_path / "wide",
        valley,
        dict.fromkeys(("left", "right", "third"), ("uniform", 0.0, 2.0)),
        trials=30,
        sampler="random",
    )
    assert gather_evidence(record, against=unlike, deep=False).random_curve is None
    assert gather_evidence(record, against=record, deep=False).random_curve is None
