"""Results of a validation, and of one repeated for a later best, from hand-made studies."""

import pytest

from synaptune.analysis.ablation import find_endpoints
from synaptune.analysis.validation import (
    compute_validation,
    measure_selection_bias,
    pair_validation_runs,
)
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

SPACE = Space((Dimension("x", "lin", 0.0, 1.0, start=0.5),))
START, FIRST, LATER = (0.5,), (0.3,), (0.1,)
SEEDS = (1000, 1001, 1002)


def run(number, phase, unit, seed, *, objective=None, index=None, state="complete"):
    loss = 2.0 + unit[0] + 0.01 * (seed % 10)
    facts = {
        "phase": phase,
        "seed": seed,
        "test_perplexity": 10.0 + 10.0 * unit[0],
        "val_loss": loss,
        "test_loss": loss + 0.1,
    }
    objective = loss if objective is None else objective
    complete = state == "complete"
    return Trial(
        number,
        number if index is None else index,
        unit,
        SPACE.to_values(unit),
        state=state,
        objective=objective if complete else None,
        facts=facts if complete else {"phase": phase, "seed": seed},
    )


def study(trials, **configuration):
    spaces = {trial.facts["phase"]: SPACE for trial in trials}
    return StudySnapshot(
        "made",
        "sqlite://",
        False,
        {"objective.name": "val_loss"} | configuration,
        {},
        trials,
        {},
        {},
        {},
        spaces,
    )


def first_validation():
    return [
        run(10 + index, "validation", unit, seed)
        for index, (seed, unit) in enumerate((s, u) for s in SEEDS for u in (START, FIRST))
    ]


def test_runs_are_paired_by_their_points_also_in_a_repeated_validation():
    trials = [
        *first_validation(),
        *[run(20 + index, "validation", LATER, seed) for index, seed in enumerate(SEEDS)],
    ]
    pairs = pair_validation_runs(study(trials))
    assert [(old.unit, new.unit, old.facts["seed"], new.facts["seed"]) for old, new in pairs] == [
        (START, LATER, seed, seed) for seed in SEEDS
    ]
    validation = compute_validation(study(trials))
    assert validation is not None
    assert validation.gain.mean == pytest.approx(100.0 * (1.0 - 11.0 / 15.0))
    endpoints = find_endpoints(study(trials))
    assert endpoints is not None
    assert (endpoints.defaults, endpoints.tuned) == (START, LATER)


def test_a_failed_run_costs_its_own_pair_and_no_other():
    trials = [
        run(11, "validation", FIRST, 1000, state="failed") if trial.number == 11 else trial
        for trial in first_validation()
    ]
    assert [old.facts["seed"] for old, _ in pair_validation_runs(study(trials))] == [1001, 1002]
    assert (
        pair_validation_runs(study([])) == pair_validation_runs(study(first_validation()[:1])) == []
    )


@pytest.mark.parametrize(("in_search", "expected"), [(True, 0.7), (False, None)])
def test_selection_bias_over_several_seeds_uses_the_searchs_own_evaluation_of_the_start(
    in_search, expected
):
    baseline = run(0, "baseline", START, 0, objective=9.0)  # one seed, not a mean over three
    best = run(2, "search", FIRST, 0, objective=2.0, index=1)
    start = run(1, "search", START if in_search else (0.6,), 0, objective=2.7, index=0)
    bias = measure_selection_bias(
        study([baseline, start, best, *first_validation()], **{"search.seeds": 3}), best
    )
    assert (None if bias is None else bias.search) == (
        None if expected is None else pytest.approx(expected)
    )


def test_selection_bias_with_one_seed_may_use_the_baseline_run():
    baseline = run(0, "baseline", START, 0, objective=9.0)
    best = run(1, "search", FIRST, 0, objective=2.0, index=0)
    bias = measure_selection_bias(
        study([baseline, best, *first_validation()], **{"search.seeds": 1}), best
    )
    assert bias is not None
    assert bias.search == pytest.approx(7.0)
    assert bias.fresh == pytest.approx(0.2)
