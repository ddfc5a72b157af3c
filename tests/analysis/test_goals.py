"""The goals of the plan, the rule of each phase, and the flag of overfitting."""

import math

import pytest

from synaptune.analysis.compare import Improvement
from synaptune.analysis.goals import check_goals, describe_overfit, find_degraded
from synaptune.analysis.validation import decide, decide_phase2, judge
from synaptune.report.tables import tabulate_goals
from synaptune.search.trial import Trial

START = {
    "test_perplexity": 10.0,
    "val_loss": math.log(9.8),
    "val_recall_accuracy": 0.4,
    "expert_gini": 0.3,
    "expert_dead_fraction": 0.0,
    "val_calibration_error": 0.05,
}


def make_runs(**changes):
    """Three runs whose metrics are those of the start times a factor, with a little noise."""
    return [
        Trial(
            number=seed,
            index=seed,
            unit=(0.5,),
            values={"x": 0.5},
            state="complete",
            objective=1.0,
            facts={
                name: value * changes.get(name, 1.0) * (1.0 + 0.001 * seed)
                for name, value in START.items()
            }
            | {"seed": seed}
            | {name[4:]: value for name, value in changes.items() if name.startswith("set_")},
        )
        for seed in range(3)
    ]


def test_each_metric_has_its_change_its_threshold_and_its_stretch_goal():
    after = make_runs(test_perplexity=0.85, val_recall_accuracy=1.2, expert_gini=1.05)
    goals = {goal.metric: goal for goal in check_goals(make_runs(), after)}
    assert list(goals) == [name for name in START if name != "val_loss"]
    perplexity, gini = goals["test_perplexity"], goals["expert_gini"]
    assert perplexity.change == pytest.approx(-15.0)
    assert (perplexity.threshold, perplexity.met, perplexity.stretch_met) == (-10.0, True, False)
    assert (gini.threshold, gini.met, gini.degraded) == (10.0, False, False)
    assert goals["val_recall_accuracy"].stretch_met
    dead = goals["expert_dead_fraction"]
    assert (dead.change, dead.met, dead.stretch_met) == (None, True, None)
    assert "nothing to improve" in tabulate_goals(list(goals.values())).rows[3]


def test_a_change_that_rounds_to_zero_has_no_sign():
    goals = check_goals(make_runs(), make_runs(expert_gini=1.0 - 1e-7))
    (gini,) = [row for row in tabulate_goals(goals).rows if row[0] == "expert Gini"]
    assert "+0.0 %" in gini


def test_a_first_dead_expert_misses_its_goal_and_counts_as_degraded():
    after = make_runs(set_expert_dead_fraction=0.125)
    goals = check_goals(make_runs(), after)
    (dead,) = [goal for goal in goals if goal.metric == "expert_dead_fraction"]
    assert (dead.met, dead.degraded) == (False, True)
    assert find_degraded(goals) == ["dead experts"]


def test_a_metric_that_the_runs_lack_has_no_row():
    runs = make_runs()
    for run in runs:
        del run.facts["val_recall_accuracy"]
    assert "val_recall_accuracy" not in {goal.metric for goal in check_goals(runs, make_runs())}


@pytest.mark.parametrize(
    ("mean", "low", "degraded", "action", "said"),
    [
        (7.0, 5.0, ["calibration error"], "re-evaluate", "calibration error degraded"),
        (7.0, 5.0, [], "re-evaluate", "no other metric degraded"),
        (12.0, 9.0, ["calibration error"], "proceed", "above 10 %"),
        (3.0, 2.0, [], "stop", "below the 5 %"),
    ],
)
def test_the_gate_says_whether_another_metric_degraded(mean, low, degraded, action, said):
    decision = decide(Improvement(mean, low, 2 * mean - low), None, degraded)
    assert decision.action == action
    assert said in decision.reason


@pytest.mark.parametrize(
    ("mean", "low", "action", "said"),
    [
        (7.0, 5.0, "proceed", "within the expected 5 to 10 %"),
        (12.0, 9.0, "proceed", "above the expected"),
        (3.0, 2.0, "stop", "below the 5 %"),
        (7.0, -1.0, "stop", "reaches zero"),
    ],
)
def test_phase_2_is_judged_by_what_it_adds(mean, low, action, said):
    decision = decide_phase2(Improvement(mean, low, 2 * mean - low))
    assert decision.action == action
    assert said in decision.reason
    before, after = make_runs(), make_runs(test_perplexity=1.0 - mean / 100.0)
    assert judge(before, after, Improvement(mean, low, 9.0), "phase2").decision == decision


def test_a_test_perplexity_far_above_validation_is_flagged():
    assert describe_overfit(make_runs(), make_runs()) is None
    flagged = describe_overfit(make_runs(), make_runs(test_perplexity=1.3))
    assert flagged is not None
    assert "32 % above" in flagged
