"""Pruners decide as Optuna's do on the same histories, and what is ours beside them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest

from synaptune.core.errors import UserError
from synaptune.search.objective.learning_curve import LEAST_POINTS
from synaptune.search.pruning import (
    PRUNERS,
    History,
    HyperbandPruner,
    PercentilePruner,
    Pruner,
    PrunerConfig,
    find_pruner_faults,
    make_pruner,
    prune_by_halving,
)

STEPS = range(1, 28)


def decisions_agree(
    ours: Pruner, theirs: optuna.pruners.BasePruner, name: str, seed: int
) -> tuple[int, int]:
    """Run trials in a random interleaving under both; returns the numbers of pruned and of complete trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random = np.random.default_rng(seed)
    study = optuna.create_study(study_name=name, pruner=theirs)
    running: dict[int, optuna.Trial] = {}
    histories: dict[int, History] = {}
    curves: dict[int, np.ndarray] = {}
    while len(histories) < 40 or running:
        if len(histories) < 40 and (len(running) < 4):
            trial = study.ask()
            running[trial.number] = trial
            histories[trial.number] = History(trial.number, "running", {})
            curves[trial.number] = (
                random.normal() + 5.0 / np.sqrt(np.array(STEPS)) + random.normal(0, 0.3, len(STEPS))
            )
            curves[trial.number][random.random(len(STEPS)) < 0.03] = math.nan
            continue
        number = int(random.choice(list(running)))
        trial, step = running[number], STEPS[len(histories[number].losses)]
        loss = float(curves[number][step - 1])
        trial.report(loss, step)
        histories[number] = histories[number]._replace(
            losses={**histories[number].losses, step: loss}
        )
        others = [history for history in histories.values() if history.number != number]
        decided = ours.prune(histories[number], others)
        assert decided == trial.should_prune(), f"trial {number} at step {step}"
        if decided or step == STEPS[-1]:
            study.tell(
                trial,
                None if decided else 1.0,
                state=optuna.trial.TrialState.PRUNED
                if decided
                else optuna.trial.TrialState.COMPLETE,
            )
            histories[number] = histories[number]._replace(
                state="pruned" if decided else "complete"
            )
            del running[number]
    states = [history.state for history in histories.values()]
    return states.count("pruned"), states.count("complete")


MAKERS: dict[str, Callable[[], tuple[Pruner, optuna.pruners.BasePruner]]] = {
    "median": lambda: (PercentilePruner(50.0, 5), optuna.pruners.MedianPruner()),
    "percentile": lambda: (
        PercentilePruner(25.0, 3),
        optuna.pruners.PercentilePruner(25.0, n_startup_trials=3),
    ),
    "halving": lambda: (
        _Halving(2, 3),
        optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    ),
    "hyperband": lambda: (HyperbandPruner(1, 27, 3, 5), optuna.pruners.HyperbandPruner(1, 27, 3)),
    "hyperband of four": lambda: (
        HyperbandPruner(2, 27, 4, 5),
        optuna.pruners.HyperbandPruner(2, 27, 4),
    ),
}


class _Halving:
    """Successive halving without brackets."""

    def __init__(self, first: int, factor: int) -> None:
        self.first, self.factor = first, factor

    def prune(self, trial: History, others: list[History]) -> bool:
        return prune_by_halving(trial, others, first=self.first, factor=self.factor)


@pytest.mark.filterwarnings(
    "ignore:All-NaN slice:RuntimeWarning"
)  # Optuna on a trial that reported no number yet
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_optunas_on_random_histories(name, seed):
    pruned, complete = decisions_agree(*MAKERS[name](), "5", seed)
    assert pruned > 3  # or the agreement would be one of two pruners that never do anything
    assert complete > 0


def test_the_brackets_of_hyperband_are_drawn_by_number_and_seed():
    pruner = HyperbandPruner(1, 81, 3, 0)
    assert pruner.get_bracket_sizes() == [81, 34, 15, 8, 5]
    drawn = [pruner.get_bracket_id(number) for number in range(3000)]
    shares = np.bincount(drawn, minlength=5) / 3000
    assert shares == pytest.approx(np.array(pruner.get_bracket_sizes()) / 143, abs=0.03)
    assert drawn != [HyperbandPruner(1, 81, 3, 1).get_bracket_id(number) for number in range(3000)]


def complete(count: int, loss: float = 1.0) -> list[History]:
    return [
        History(number, "complete", dict.fromkeys(range(1, 17), loss + number / 100))
        for number in range(count)
    ]


@pytest.mark.parametrize("name", PRUNERS[1:])
def test_no_pruner_judges_a_trial_whose_end_cannot_be_told(name):
    pruner = make_pruner(PrunerConfig(name), steps=16, evaluations=16)
    hopeless = dict.fromkeys(range(1, 17), 9.0)
    decided = [
        pruner.prune(
            History(99, "running", {at: hopeless[at] for at in range(1, step + 1)}), complete(20)
        )
        for step in range(1, 17)
    ]
    assert not any(decided[: LEAST_POINTS - 1])
    assert any(decided)
    assert not decided[-1]


def test_warm_up_steps_are_not_judged():
    pruner = make_pruner(PrunerConfig("median", warmup_steps=9), steps=16, evaluations=16)
    at = [
        step
        for step in range(1, 17)
        if pruner.prune(
            History(99, "running", dict.fromkeys(range(1, step + 1), 9.0)), complete(20)
        )
    ]
    assert at == list(range(9, 16))


def test_a_trial_better_than_the_others_is_never_pruned():
    for name in PRUNERS:
        pruner = make_pruner(PrunerConfig(name), steps=16, evaluations=16)
        for step in range(1, 17):
            assert not pruner.prune(
                History(99, "running", dict.fromkeys(range(1, step + 1), 0.5)), complete(20)
            )


def test_the_order_of_the_other_trials_does_not_matter():
    random = np.random.default_rng(0)
    others = [
        History(n, "complete", {step: float(random.normal()) for step in range(1, 17)})
        for n in range(30)
    ]
    for name in PRUNERS:
        pruner = make_pruner(PrunerConfig(name), steps=16, evaluations=16)
        for number in range(30, 60):
            trial = History(
                number, "running", {step: float(random.normal()) for step in range(1, 10)}
            )
            assert pruner.prune(trial, others) == pruner.prune(trial, others[::-1])


def test_every_fault_is_told_at_once():
    config = PrunerConfig(
        "luck",
        percentile=101.0,
        startup_trials=-1,
        least_points=1,
        warmup_steps=-1,
        reduction_factor=1,
        min_resource=0,
    )
    with pytest.raises(UserError) as caught:
        make_pruner(config, steps=16, evaluations=16)
    for name in vars(config):
        assert f"pruner.{name}=" in str(caught.value)


def test_too_few_validations_to_prune_anything_are_refused():
    assert "training.evaluations=4" in find_pruner_faults(PrunerConfig("median"), 4)[0]
    assert (
        find_pruner_faults(PrunerConfig("none"), 4)
        == find_pruner_faults(PrunerConfig("median"), 5)
        == []
    )
