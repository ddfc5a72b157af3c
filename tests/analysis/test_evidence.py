"""The analyses recover the known properties of a study."""

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
    """Two parameters that act by their sum, and a third."""
    return 10 * (p["left"] + p["right"] - 1.0) ** 2 + (p["third"] - 0.6) ** 2


@pytest.mark.slow
def test_the_shares_of_a_linear_objective_are_recovered(tmp_path):
    """Over uniform points the shares of variance are proportional to the squared weights."""
    evidence = gather_evidence(
        make_study(tmp_path / "linear", linear, tuple(WEIGHTS), trials=250, sampler="random")
    )
    total = sum(weight**2 for weight in WEIGHTS.values())
    fanova = {entry.name: entry.fanova for entry in evidence.importances}
    for name, weight in WEIGHTS.items():
        assert fanova[name] == pytest.approx(weight**2 / total, abs=0.12)
    ped = {entry.name: entry.ped_anova for entry in evidence.importances}
    assert sorted(WEIGHTS, key=lambda name: -ped[name])[:2] == ["first", "second"]
    assert {effect.name for effect in evidence.effects if effect.significant} == {
        "first",
        "second",
        "third",
    }


def test_a_valley_gives_a_correlation_that_noise_does_not(tmp_path):
    snapshot = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=140)
    evidence = gather_evidence(snapshot, deep=False)
    space = snapshot.spaces["search"]
    pairs = rank_pairs(
        space,
        evidence.correlation,
        simulate_null(snapshot.engine, space, len(evidence.generations)),
    )
    assert {pairs[0].first, pairs[0].second} == {"left", "right"}
    assert pairs[0].correlation < -0.8
    assert pairs[0].adjusted_p < 0.05
    assert all(pair.adjusted_p > 0.05 for pair in pairs[1:])


def test_the_correlations_of_null_searches_are_rarely_significant():
    """Tested against other null searches, no more than the nominal share shows a pair."""
    space = Space(tuple(Dimension(name, "lin", start=0.5) for name in "abc"))
    correlations = simulate_null(Engine("cma", 0), space, 8, count=159)
    null, tested = correlations[:59], correlations[59:]
    significant = sum(
        rank_pairs(space, correlation, null)[0].adjusted_p < 0.05 for correlation in tested
    )
    # With 59 null searches the actual level lies between about 3 and 9 %.
    assert significant <= binom.ppf(0.999, len(tested), 0.1)


def test_expected_best_of_random_points_is_the_mean_over_all_choices_of_them():
    losses = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    curve = _make_random_curve(losses, "here")
    assert list(curve.k) == [1, 2, 3, 4, 5, 6]
    for k, best, low, high in zip(curve.k, curve.best, curve.low, curve.high, strict=True):
        minima = sorted(min(chosen) for chosen in itertools.combinations(losses, k))
        assert best == pytest.approx(statistics.fmean(minima))
        assert low == minima[max(0, -(-len(minima) // 10) - 1)]
        assert high == minima[-(-9 * len(minima) // 10) - 1]


def test_the_convergence_never_rises_and_ends_at_the_best(tmp_path):
    snapshot = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=40)
    convergence = compute_convergence(snapshot)
    assert convergence.evaluation[-1] == 40
    assert all(later <= earlier for earlier, later in itertools.pairwise(convergence.best))
    assert convergence.best[-1] == min(trial.objective for trial in snapshot.trials)
    assert all(later >= earlier for earlier, later in itertools.pairwise(convergence.hours))


def test_a_pause_of_the_controller_is_left_out_of_the_hours(tmp_path):
    from datetime import timedelta

    snapshot = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=20)
    end_times = {
        number: end + timedelta(hours=5) if number >= 10 else end
        for number, end in snapshot.end_times.items()
    }
    trials = [replace(trial, facts=trial.facts | {"seconds": 1.0}) for trial in snapshot.trials]
    convergence = compute_convergence(replace(snapshot, end_times=end_times, trials=trials))
    assert convergence.hours[-1] < 0.1


def test_a_maximised_study_is_read_as_one(tmp_path):
    snapshot = make_study(
        tmp_path / "up",
        lambda p: -valley(p),
        ("left", "right", "third"),
        trials=40,
        direction="maximize",
    )
    evidence = gather_evidence(snapshot, deep=False)
    assert evidence.maximize
    assert evidence.best.objective == max(trial.objective for trial in snapshot.trials)
    assert evidence.convergence.best[-1] == -evidence.best.objective


def test_a_study_with_only_a_running_trial_has_no_results(tmp_path):
    def interrupted(p):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_study(tmp_path / "begun", interrupted, ("a", "b"), trials=10)
    evidence = gather_evidence(find_study(str(tmp_path / "begun")))
    assert evidence.best is None
    assert evidence.validation is None
    assert evidence.convergence is None
    assert evidence.effects == []
    assert len(evidence.trials) == 1


def test_random_points_are_a_comparison_only_for_the_same_objective(tmp_path):
    snapshot = make_study(tmp_path / "valley", valley, ("left", "right", "third"), trials=40)
    comparable = make_study(
        tmp_path / "random", valley, ("left", "right", "third"), trials=30, sampler="random"
    )
    assert gather_evidence(snapshot, against=comparable, deep=False).random_curve.count == 30
    other = make_study(
        tmp_path / "wide",
        valley,
        dict.fromkeys(("left", "right", "third"), ("uniform", 0.0, 2.0)),
        trials=30,
        sampler="random",
    )
    assert gather_evidence(snapshot, against=other, deep=False).random_curve is None
    assert gather_evidence(snapshot, against=snapshot, deep=False).random_curve is None
