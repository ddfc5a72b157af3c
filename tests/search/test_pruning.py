"""Optuna's pruners on the trials of a search: decisions, restarts, lost attempts, estimates."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from synaptune import TrialManager, TrialPruned
from synaptune.core.errors import UserError
from synaptune.search.objective.learning_curve import LEAST_POINTS
from synaptune.search.pruning import (
    PRUNERS,
    PrunerConfig,
    TrialPruner,
    find_pruner_faults,
    make_pruner,
)
from synaptune.search.trial import Trial

STEPS = range(1, 28)
MAKERS = {
    "median": optuna.pruners.MedianPruner,
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=3),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(1, 27, 3),
    "hyperband of four": lambda: optuna.pruners.HyperbandPruner(2, 27, 4),
}


def make_trial(number, state="running", objective=1.0):
    return Trial(number, number, (0.5,), {}, state, objective if state == "complete" else None)


def make_curve(random, noise=0.3):
    curve = random.normal() + 5.0 / np.sqrt(np.array(STEPS)) + random.normal(0, noise, len(STEPS))
    curve[random.random(len(STEPS)) < 0.03] = math.nan
    return curve


def run_both(name, seed, maximize):
    """Run interleaved trials under an adapter and in a study of Optuna.

    Returns:
        The adapter and the ended trials, each with its reports.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random, sign = np.random.default_rng(seed), -1.0 if maximize else 1.0
    direction = "maximize" if maximize else "minimize"
    study = optuna.create_study(study_name="5", pruner=MAKERS[name](), direction=direction)
    pruner = TrialPruner(MAKERS[name](), maximize=maximize, seed=5)
    running, reports, ended = {}, {}, []
    while len(reports) < 40 or running:
        if len(reports) < 40 and len(running) < 4:
            trial = study.ask()
            running[trial.number], reports[trial.number] = (trial, make_curve(random)), {}
            continue
        number = int(random.choice(list(running)))
        (trial, curve), step = running[number], STEPS[len(reports[number])]
        value = reports[number][step] = sign * float(curve[step - 1])
        trial.report(value, step)
        stop = pruner(make_trial(number), step, value)
        assert stop == trial.should_prune(), f"trial {number} at step {step}"
        if stop or step == STEPS[-1]:
            states = optuna.trial.TrialState
            study.tell(trial, None if stop else 1.0, states.PRUNED if stop else states.COMPLETE)
            ended.append((make_trial(number, "pruned" if stop else "complete"), reports[number]))
            pruner.on_end(ended[-1][0], len(ended))
            del running[number]
    return pruner, ended


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # Optuna's own study
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_decisions_are_those_of_a_study_of_optuna_also_after_a_restart(name, maximize):
    pruner, ended = run_both(name, 1, maximize)
    states = [trial.state for trial, _ in ended]
    assert states.count("pruned") > 3  # or nothing is compared
    assert states.count("complete") > 0
    ended.sort(key=lambda pair: pair[0].index)
    again = TrialPruner(MAKERS[name](), ended, maximize=maximize, seed=5)
    random = np.random.default_rng(9)
    for number in range(40, 60):
        curve, trial = make_curve(random), make_trial(number)
        for step in STEPS:
            value = (-1.0 if maximize else 1.0) * float(curve[step - 1])
            stop = pruner(trial, step, value)
            assert again(trial, step, value) == stop
            if stop:
                break
        for each in (pruner, again):
            each.on_end(make_trial(number, "pruned" if stop else "complete"), number)


def test_reports_further_apart_than_rungs_are_the_same_after_a_restart():
    def make():
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)

    live, ended = TrialPruner(make()), []
    for number, value in enumerate((3.0, 2.0, 5.0, 1.0)):  # two of them pass, two are stopped
        stop = live(make_trial(number), 8, value)
        ended.append((make_trial(number, "pruned" if stop else "complete"), {8: value}))
        live.on_end(ended[-1][0], number + 1)
    again = TrialPruner(make(), ended)
    assert [trial.state for trial, _ in ended] == ["complete", "complete", "pruned", "complete"]
    for number, value in ((4, 2.5), (5, 1.5), (6, 0.5)):
        assert live(make_trial(number), 8, value) == again(make_trial(number), 8, value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_lost_attempt_and_a_failed_trial_leave_no_trace(name):
    random = np.random.default_rng(2)
    curves = [make_curve(random) for _ in range(30)]
    clean, disturbed = TrialPruner(MAKERS[name](), seed=5), TrialPruner(MAKERS[name](), seed=5)
    for number, curve in enumerate(curves):
        trial = make_trial(number)
        for step in STEPS[: 1 + number % 9]:
            disturbed(trial, step, -100.0)
        if number % 5 == 4:
            disturbed.on_end(make_trial(number, "failed"), number)
            continue
        for step in STEPS:
            stop = clean(trial, step, float(curve[step - 1]))
            assert disturbed(trial, step, float(curve[step - 1])) == stop
            if stop:
                break
        for each in (clean, disturbed):
            each.on_end(make_trial(number, "pruned" if stop else "complete"), number)


def complete(count, loss=1.0):
    return [
        (make_trial(number, "complete"), dict.fromkeys(range(1, 17), loss + number / 100))
        for number in range(count)
    ]


def decide(pruner, value):
    """The decisions on trial 20, which reports one value at each of 16 steps."""
    return [pruner(make_trial(20), step, value) for step in range(1, 17)]


def make_adapter(name, **options):
    pruner = make_pruner(PrunerConfig(name, **options), steps=16, evaluations=16)
    assert pruner is not None
    return TrialPruner(pruner, complete(20))


@pytest.mark.parametrize("name", PRUNERS[1:])
def test_no_trial_stops_before_its_end_can_be_estimated(name):
    stops = decide(make_adapter(name), 9.0)
    assert not any(stops[: LEAST_POINTS - 1])
    assert any(stops[:-1])


@pytest.mark.parametrize("name", PRUNERS[1:])
def test_no_trial_stops_during_warm_up(name):
    stops = decide(make_adapter(name, warmup_steps=9), 9.0)
    assert not any(stops[:8])
    assert stops[8]


def test_rungs_begin_where_a_trial_can_be_judged():
    assert not any(decide(make_adapter("hyperband", min_resource=1), 9.0)[: LEAST_POINTS - 1])
    assert not any(decide(make_adapter("hyperband", min_resource=7), 9.0)[:6])


@pytest.mark.parametrize("name", PRUNERS[1:])
def test_a_trial_better_than_the_others_is_never_stopped(name):
    assert not any(decide(make_adapter(name), 0.5))


def test_the_pruner_none_is_no_pruner():
    assert make_pruner(PrunerConfig("none"), steps=16, evaluations=16) is None


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


LAST = 12
INF, NAN = math.inf, math.nan


def law(step):
    """A learning curve that the fit knows, from step 1."""
    return 2.0 + 3.0 * step**-0.5


def estimate(reports, *, last=LAST, first=1):
    """Estimate trial 0 from its reports by step; trial 1 ran from step `first` to step `last`."""
    other = (make_trial(1, "complete"), dict.fromkeys(range(first, last + 1), 1.0))
    pruner, trial = TrialPruner(optuna.pruners.NopPruner(), [other]), make_trial(0)
    for step, value in reports.items():
        pruner(trial, step, value)
    return pruner.estimate(trial)


def test_the_estimate_is_the_law_at_the_last_step_of_the_others():
    assert estimate({step: law(step) for step in range(1, 7)}) == pytest.approx(law(LAST), rel=1e-3)


def test_steps_from_zero_tell_what_the_same_steps_from_one_tell():
    from_one = estimate({step: law(step) for step in range(1, 7)})
    assert estimate(
        {step - 1: law(step) for step in range(1, 7)}, last=LAST - 1, first=0
    ) == pytest.approx(from_one, rel=1e-9)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e308])
def test_a_report_that_is_no_number_changes_no_estimate(bad):
    good = {step: law(step) for step in range(1, 7)}
    without = estimate({step: value for step, value in good.items() if step != 3})
    assert estimate(good | {3: bad}) == without
    assert estimate(dict.fromkeys(range(1, 7), bad)) is None


def test_steps_below_zero_are_left_out():
    good = {step: law(step) for step in range(1, 7)}
    assert estimate({-2: 9.0, -1: 8.0} | good) == estimate(good)


@pytest.mark.parametrize(("first", "bad"), [(0, None), (1, NAN), (1, INF), (0, 1e308)])
def test_a_search_outlasts_whatever_its_trials_report(tmp_path, first, bad):
    def objective(params):
        for step in range(
            12
        ):  # every curve falls until it is at x: what is pruned has reported enough for a law
            bad_here = bad is not None and step == 2
            made.report(bad if bad_here else max(10.0 - step, params["x"]), first + step)
            if made.should_prune():
                raise TrialPruned
        return params["x"]

    options = {
        "n_trials": 20,
        "sampler": "random",
        "pruner": "median",
        "directory": tmp_path,
        "progress": False,
    }
    made = TrialManager("s", **options)
    made.optimize(objective, {"x": ("uniform", 0, 10)})
    pruned = [trial for trial in made.trials if trial.state == "pruned"]
    assert len(made.trials) == 20
    assert [trial for trial in pruned if trial.estimate is not None]


def test_a_manager_takes_any_pruner_of_optuna_and_refuses_other_names(tmp_path):
    def objective(params):
        for step in range(1, 10):
            made.report(params["x"], step)
            if made.should_prune():
                raise TrialPruned
        return params["x"]

    options = {"n_trials": 20, "sampler": "random", "progress": False}
    pruner = optuna.pruners.ThresholdPruner(upper=5.0)
    made = TrialManager("s", pruner=pruner, directory=tmp_path, **options)
    made.optimize(objective, {"x": ("uniform", 0, 10)})
    for trial in made.trials:
        assert (trial.state == "pruned") == (trial.values["x"] > 5.0)
    with pytest.raises(UserError, match="hyperband, or a pruner of Optuna"):
        TrialManager("s", pruner="hyperbnad", directory=tmp_path, **options)


def test_a_manager_knows_hyperband_by_name(tmp_path):
    def objective(params):
        for step in range(1, 28):
            made.report(params["x"] + 1 / step, step)
            if made.should_prune():
                raise optuna.TrialPruned
        return params["x"]

    options = {"n_trials": 30, "sampler": "random", "progress": False}
    made = TrialManager("s", pruner="hyperband", directory=tmp_path, **options)
    made.optimize(objective, {"x": ("uniform", 0, 10)})
    states = [trial.state for trial in made.trials]
    assert set(states) == {"complete", "pruned"}
