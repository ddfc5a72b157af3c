"""What a validation says, from studies made by hand: of the first validation, and of one that was made again for a later best."""

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
    whole = state == "complete"
    return Trial(
        number,
        number if index is None else index,
        unit,
        SPACE.to_values(unit),
        state=state,
        objective=objective if whole else None,
        facts=facts if whole else {"phase": phase, "seed": seed},
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
        run(10 + at, "validation", unit, seed)
        for at, (seed, unit) in enumerate((s, u) for s in SEEDS for u in (START, FIRST))
    ]


def test_runs_are_paired_by_their_points_whatever_was_appended():
    again = [
        *first_validation(),
        *[run(20 + at, "validation", LATER, seed) for at, seed in enumerate(SEEDS)],
    ]
    pairs = pair_validation_runs(study(again))
    assert [(old.unit, new.unit, old.facts["seed"], new.facts["seed"]) for old, new in pairs] == [
        (START, LATER, seed, seed) for seed in SEEDS
    ]
    found = compute_validation(study(again))
    assert found is not None
    assert found.gain.mean == pytest.approx(100.0 * (1.0 - 11.0 / 15.0))
    between = find_endpoints(study(again))
    assert between is not None
    assert (between.defaults, between.tuned) == (START, LATER)


def test_a_failed_run_costs_its_own_pair_and_no_other():
    lost = [
        run(11, "validation", FIRST, 1000, state="failed") if trial.number == 11 else trial
        for trial in first_validation()
    ]
    assert [old.facts["seed"] for old, _ in pair_validation_runs(study(lost))] == [1001, 1002]
    assert (
        pair_validation_runs(study([])) == pair_validation_runs(study(first_validation()[:1])) == []
    )


@pytest.mark.parametrize(("own", "expected"), [(True, 0.7), (False, None)])
def test_luck_over_several_seeds_is_against_the_searchs_own_evaluation_of_the_start(own, expected):
    baseline = run(0, "baseline", START, 0, objective=9.0)  # of one seed: no mean over three
    best = run(2, "search", FIRST, 0, objective=2.0, index=1)
    start = run(1, "search", START if own else (0.6,), 0, objective=2.7, index=0)
    found = measure_selection_bias(
        study([baseline, start, best, *first_validation()], **{"search.seeds": 3}), best
    )
    assert (None if found is None else found.search) == (
        None if expected is None else pytest.approx(expected)
    )


def test_luck_with_one_seed_may_take_the_baseline_run():
    baseline = run(0, "baseline", START, 0, objective=9.0)
    best = run(1, "search", FIRST, 0, objective=2.0, index=0)
    found = measure_selection_bias(
        study([baseline, best, *first_validation()], **{"search.seeds": 1}), best
    )
    assert found is not None
    assert found.search == pytest.approx(7.0)
    assert found.fresh == pytest.approx(0.2)
