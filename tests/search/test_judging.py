"""What a pruner's judge makes of the values that trials report, and a search whose trials report what they like."""

import math

import pytest

from synaptune import TrialManager, TrialPruned
from synaptune.search.judging import TrialPruner
from synaptune.search.pruning import NoPruner
from synaptune.search.trial import Trial

STEPS = 12
INF, NAN = math.inf, math.nan


def law(step):
    """A learning curve that the fit knows, from step 1."""
    return 2.0 + 3.0 * step**-0.5


def estimate(reports, *, last=STEPS, first=1):
    """The estimate of trial 0 from its reports by step, where trial 1 went from step `first` to step `last`."""
    judging = TrialPruner(
        NoPruner(),
        [(Trial(1, 1, (0.5,), {}, "complete", 1.0), dict.fromkeys(range(first, last + 1), 1.0))],
    )
    trial = Trial(0, 0, (0.5,), {})
    for step, value in reports.items():
        judging(trial, step, value)
    return judging.estimate(trial)


def test_the_estimate_is_the_law_at_the_last_step_of_the_others():
    assert estimate({step: law(step) for step in range(1, 7)}) == pytest.approx(
        law(STEPS), rel=1e-3
    )


def test_steps_from_zero_tell_what_the_same_steps_from_one_tell():
    from_one = estimate({step: law(step) for step in range(1, 7)})
    assert estimate(
        {step - 1: law(step) for step in range(1, 7)}, last=STEPS - 1, first=0
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
