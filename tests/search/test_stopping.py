"""Stopping rules on real searches of a small function in a database, and as commands."""

import math
from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.loop import Search, run_searches
from synaptune.search.optimizers.registry import Engine
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.plan import Plan
from synaptune.search.space.space import Dimension, Space
from synaptune.search.stopping import StopConfig, check_stop, make_stop_rule
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(
    (Dimension("x", "lin", 0.0, 10.0, start=1.0), Dimension("y", "log", 1.0, 100.0, start=10.0))
)
OFF = StopConfig(plateau=None)


def run_with_rules(folder, config, *, budget=60, maximize=False, clock=None, messages=None):
    """Run a search under stopping rules, with a nominal six minutes per trial.

    Returns:
        The trials.
    """
    engine = Engine("cma", 7, workers=1)
    with Study(
        StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto"),
        {"a": 1},
        maximize=maximize,
    ) as study:

        def run(trial):
            height = (trial.values["x"] - 3.0) ** 2 + trial.values["y"] / 100.0
            return Result(-height if maximize else height, 360.0)

        search = Search(
            SPACE,
            engine,
            Plan(budget, maximize=maximize, max_failure_rate=1.0),
            PhaseLedger(study, SPACE, "search", {}),
            StateFile(folder / "optimizer.pkl", engine, SPACE.describe()),
            stop_rule=make_stop_rule(
                config, maximize=maximize, **({"clock": clock} if clock else {})
            ),
            on_message=([] if messages is None else messages).append,
        )
        return run_searches([search], InlineWorkers(run))[0]


def make_trials(*objectives, size=6):
    """Ended trials in generations of a size; None as the objective makes a failed trial."""
    return [
        Trial(
            number,
            number,
            (0.5, 0.5),
            {},
            "failed" if value is None else "complete",
            objective=value,
            facts={"generation": number // size},
        )
        for number, value in enumerate(objectives)
    ]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(OFF, target=1.0), "stop.target=1"),
        (
            replace(OFF, money=3.0, price=2.0),
            "3.6 spent: 18 trials took 1.8 device hours at 2 (stop.money=3)",
        ),
        (StopConfig(plateau=1, patience=2, improvement=0.9), "stopped on a plateau"),
    ],
)
def test_a_search_stops_for_its_reason_and_the_same_command_runs_no_further_trial(
    tmp_path, config, reason
):
    first, again = [], []
    trials = run_with_rules(tmp_path, config, messages=first)
    assert 0 < len(trials) < 60
    assert reason in first[-1]
    assert run_with_rules(tmp_path, config, messages=again) == run_with_rules(tmp_path, config)
    assert again == first
    assert [trial.number for trial in run_with_rules(tmp_path, config)] == list(range(len(trials)))
    assert len(run_with_rules(tmp_path, OFF)) == 60


def test_the_hours_count_from_the_start_of_the_command():
    rule = make_stop_rule(
        replace(OFF, hours=1.0), maximize=False, started_at=100.0, clock=lambda: 3700.0
    )
    assert "stopped after 1 hours" in rule([])
    assert make_stop_rule(replace(OFF, hours=1.0), maximize=False, clock=lambda: 3700.0)([]) is None


def test_the_hours_are_those_of_one_command(tmp_path):
    def hours(count):
        """A clock that returns 3,600 s once `count` trials have ended, and 0 before."""
        readings = iter([0.0] * (count + 1))
        return lambda: next(readings, 3600.0)

    config, messages = replace(OFF, hours=1.0), []
    first = len(run_with_rules(tmp_path, config, clock=hours(7), messages=messages))
    assert messages[-1] == "search: stopped after 1 hours of this command (stop.hours=1)"
    assert first == 7
    assert len(run_with_rules(tmp_path, config, clock=hours(5))) == first + 5


def test_a_target_follows_the_direction(tmp_path):
    trials = run_with_rules(tmp_path, replace(OFF, target=-1.0), maximize=True)
    assert len(trials) < 60
    assert max(trial.objective for trial in trials) >= -1.0
    assert (
        len(run_with_rules(tmp_path / "low", replace(OFF, target=-1.0), maximize=False, budget=12))
        == 12
    )


def test_a_plateau_is_several_small_improvements_in_a_row():
    def stops(*bests, **changes):
        """Whether the rule stops a search with these best objectives.

        The best is 10 in the first generation. `bests` holds the best at each check, which are two
        generations of six trials apart.
        """
        objectives = (
            [10.0] * 6
            + [10.0] * 5
            + [bests[0]]
            + [value for best in bests[1:] for value in [10.0] * 11 + [best]]
        )
        return (
            make_stop_rule(StopConfig(plateau=2, **changes), maximize=False)(
                make_trials(*objectives)
            )
            is not None
        )

    assert not stops(9.99, 9.98)
    assert stops(9.99, 9.98, 9.97)
    assert not stops(9.99, 9.0, 8.99)
    assert not stops(9.99, 9.98, 9.8)
    assert stops(9.0, 8.99, 8.98, 8.97)
    assert not stops(9.0, 8.99, 8.98, 8.0)
    assert stops(9.99, 9.98, patience=2)
    assert not stops(9.99, 9.98, 9.97, improvement=1e-4)


def test_the_plateau_rule_handles_negative_bests_and_failed_trials():
    def stops(*objectives, maximize=False):
        return (
            make_stop_rule(StopConfig(plateau=1), maximize=maximize)(make_trials(*objectives))
            is not None
        )

    assert not stops(*[-10.0] * 6, *[None] * 12)
    assert stops(*[-10.0] * 6, *[None] * 18)
    assert not stops(*[-10.0] * 6, *[None] * 17, -11.0)
    assert not stops(*[None] * 48)
    assert stops(*[10.0] * 24, maximize=True)
    assert not stops(*[10.0] * 23, 11.0, maximize=True)


def test_generations_of_one_trial_count_as_those_of_cma_for_the_plateau():
    rule = make_stop_rule(StopConfig(plateau=1), maximize=False)
    assert rule(make_trials(*[1.0] * 23, size=1)) is None
    assert rule(make_trials(*[1.0] * 24, size=1)) is not None


def test_every_bad_value_is_reported_at_once():
    with pytest.raises(UserError) as caught:
        check_stop(
            StopConfig(
                hours=0.0,
                money=-1.0,
                price=math.inf,
                target=math.nan,
                plateau=0,
                patience=0,
                improvement=1.0,
            ),
        )
    for name in (
        "hours=0",
        "money=-1",
        "price=inf",
        "target=nan",
        "plateau=0",
        "patience=0",
        "improvement=1",
    ):
        assert f"stop.{name}" in str(caught.value)
    with pytest.raises(UserError, match="price of a device hour"):
        make_stop_rule(StopConfig(money=5.0), maximize=False)
