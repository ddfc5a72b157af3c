"""Hybrid studies rank all trials by one score, and estimates of pruned trials are no results."""

from dataclasses import replace

import pytest

from helpers.real_studies import make_study
from synaptune import TrialPruned
from synaptune.analysis.ablation import find_endpoints
from synaptune.analysis.convergence import (
    compute_convergence,
    compute_random_curve,
    is_comparable,
    summarise_generations,
)
from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.ranking import rescore_study
from synaptune.analysis.refine.runs import RunSelection, read_study_runs
from synaptune.analysis.replay import replay

SPACE = {"a": ("uniform", 0.0, 1.0), "b": ("uniform", 0.0, 1.0)}
SWITCH = 2


def bowl(p):
    return 1.0 + (p["a"] - 0.3) ** 2 + (p["b"] - 0.7) ** 2


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A study of a hybrid search.

    Its composite scores (shares of the baseline) are far larger than the losses before the switch.
    """
    snapshot = make_study(tmp_path_factory.mktemp("hybrid") / "hybrid", bowl, SPACE, trials=30)
    trials = []
    for trial in snapshot.trials:
        loss = trial.objective
        objective = loss if trial.facts["generation"] < SWITCH else 100.0 * loss
        trials.append(
            replace(
                trial,
                objective=objective,
                facts=trial.facts | {"val_loss": loss, "val_perplexity": 1000.0 * loss},
            )
        )
    settings = {
        "objective.name": "hybrid",
        "objective.switch": SWITCH,
        "objective.baseline.val_perplexity": 10.0,
    }
    settings |= {f"search.start.{name}": 0.5 for name in SPACE}
    return replace(snapshot, configuration={**snapshot.configuration, **settings}, trials=trials)


def test_all_trials_of_a_hybrid_study_are_ranked_by_what_it_is_at_the_end(hybrid):
    scores = [trial.objective for trial in rescore_study(hybrid).trials]
    assert scores == pytest.approx([100.0 * trial.facts["val_loss"] for trial in hybrid.trials])
    least = min(hybrid.trials, key=lambda trial: trial.facts["val_loss"])
    assert least.facts["generation"] >= SWITCH, (
        "the best is an early trial, so the test would not detect mixed scores"
    )
    evidence = gather_evidence(hybrid, deep=False)
    assert evidence.best.number == least.number
    assert evidence.convergence.best[-1] == min(loss for loss in evidence.losses)
    assert min(evidence.losses) == pytest.approx(100.0 * least.facts["val_loss"])
    assert find_endpoints(hybrid).tuned == least.unit
    assert min(read_study_runs(hybrid, RunSelection()).scores) == min(evidence.losses)


def test_the_baseline_of_a_hybrid_study_may_have_been_measured(hybrid):
    first = hybrid.trials[0]
    reference = replace(
        first,
        number=900,
        index=0,
        objective=3.0,
        facts={"phase": "reference", "generation": 0, "val_perplexity": 20.0},
    )
    settings = dict(hybrid.configuration) | {"objective.baseline.val_perplexity": None}
    snapshot = rescore_study(
        replace(hybrid, configuration=settings, trials=[*hybrid.trials, reference])
    )
    assert snapshot.search_trials[0].objective == pytest.approx(50.0 * first.facts["val_loss"])
    assert snapshot.get_phase_trials("reference")[0].objective == 3.0


def test_a_trial_without_the_metrics_of_the_last_score_is_not_ranked_and_other_objectives_stay(
    hybrid,
):
    bare = replace(
        hybrid.trials[0],
        facts={
            key: value
            for key, value in hybrid.trials[0].facts.items()
            if not key.startswith("val_")
        },
    )
    assert (
        rescore_study(replace(hybrid, trials=[bare, *hybrid.trials[1:]])).trials[0].objective
        is None
    )
    plain = replace(
        hybrid, configuration=dict(hybrid.configuration) | {"objective.name": "val_loss"}
    )
    assert rescore_study(plain) is plain


def test_the_estimate_of_a_pruned_trial_reaches_the_optimizer_but_no_result(tmp_path):
    def objective(p):
        if p["a"] > 0.5:
            raise TrialPruned(-100.0)  # the estimate is below every loss
        return bowl(p)

    snapshot = make_study(tmp_path / "pruned", objective, SPACE, trials=30)
    pruned = [trial for trial in snapshot.trials if trial.state == "pruned"]
    assert pruned
    assert {snapshot.get_loss(trial) for trial in pruned} == {-100.0}
    assert {snapshot.get_complete_loss(trial) for trial in pruned} == {None}
    least = min(trial.objective for trial in snapshot.trials if trial.objective is not None)
    assert compute_convergence(snapshot).best[-1] == least
    assert min(read_study_runs(snapshot, RunSelection()).scores) == least
    replayed = replay(snapshot)
    assert any(loss == -100.0 for batch in replayed.batches for loss in batch.losses)
    generations = summarise_generations(
        snapshot, replayed.diagnostics, snapshot.spaces["search"], snapshot.search_trials
    )
    assert all(entry.best_loss is None or entry.best_loss >= least for entry in generations)
    evidence = gather_evidence(snapshot, deep=False)
    assert [loss is None for loss in evidence.losses] == [
        trial.state == "pruned" for trial in evidence.trials
    ]
    assert min(min(profile.losses) for profile in evidence.profiles) == least


def test_random_points_of_which_some_were_pruned_are_not_comparable(tmp_path):
    def objective(p):
        if p["a"] > 0.5:
            raise TrialPruned(-100.0)
        return bowl(p)

    snapshot = make_study(tmp_path / "cma", bowl, SPACE, trials=12)
    assert (
        compute_random_curve(
            snapshot, make_study(tmp_path / "pruned", objective, SPACE, trials=30, sampler="random")
        )
        is None
    )
    assert (
        compute_random_curve(
            snapshot, make_study(tmp_path / "whole", bowl, SPACE, trials=30, sampler="random")
        ).count
        == 30
    )


@pytest.mark.parametrize(
    ("settings", "other_settings", "comparable"),
    [
        ({"model.width": 64, "synapse.b": 1.0}, {"model.width": 64, "synapse.b": 1.0}, True),
        ({"model.width": 64}, {"model.width": 32}, False),
        ({"synapse.b": 1.0}, {"synapse.b": 2.0}, False),
        ({}, {"model.experts": 4}, False),
        ({}, {"search.space.other": "lin [0, 1]"}, False),
        ({"search.seeds": 3}, {}, False),
        ({"search.seeds": 1}, {}, True),
        ({"search.optimizer": "cma"}, {"search.optimizer": "random"}, True),
    ],
)
def test_random_points_of_another_model_or_space_are_no_comparison(
    hybrid, settings, other_settings, comparable
):
    engine = {"name": "random", "seed": 0}
    assert (
        is_comparable(
            replace(hybrid, configuration=settings),
            replace(hybrid, configuration=other_settings, notes={"engine": engine}),
        )
        == comparable
    )
