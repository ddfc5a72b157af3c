"""Cost of a plan: its arithmetic, its measurement and its source in a study.

docs/results.md compares an estimate with the actual cost.
"""

import csv
import itertools

import pytest

from synaptune.analysis.cost import (
    PlannedRuns,
    RunTiming,
    SecondsRange,
    estimate_run_seconds,
    measure_timing,
    price_plan,
    read_study_seconds,
)
from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study
from synaptune.training import checkpoint
from synaptune.training.config import TrainingConfig


def rounds_by_hand(stage, devices):
    """Assign runs one by one: a round ends if no device is free or the generation is complete."""
    rounds = in_round = in_generation = 0
    for _ in range(stage.runs):
        if in_round == 0:
            rounds += 1
        in_round, in_generation = in_round + 1, in_generation + 1
        if in_round == devices or in_generation == stage.at_once:
            in_round = 0
        if in_generation == stage.at_once:
            in_generation = 0
    return rounds


def test_rounds_are_those_of_assigning_runs_one_by_one():
    for runs, at_once, devices in itertools.product(range(25), (None, 1, 3, 10), range(1, 12)):
        stage = PlannedRuns("search", runs, at_once=at_once)
        assert stage.count_rounds(devices) == rounds_by_hand(stage, devices), (stage, devices)


def test_a_run_is_the_sum_of_its_parts():
    speed = RunTiming(step=0.01, evaluation=2.0, save=0.5, fixed=3.0, start=100.0)
    training = TrainingConfig(steps=200, evaluations=4, checkpoint_every=0)
    assert estimate_run_seconds(speed, training, with_test=False) == pytest.approx(
        3.0 + 2.0 + 8.0 + 0.5
    )
    assert estimate_run_seconds(speed, training, with_test=True) == pytest.approx(
        3.0 + 2.0 + 10.0 + 0.5
    )
    every = TrainingConfig(steps=200, evaluations=4, checkpoint_every=50)
    assert estimate_run_seconds(speed, every, with_test=False) == pytest.approx(
        3.0 + 2.0 + 8.0 + 4 * 0.5
    )
    assert estimate_run_seconds(
        speed, TrainingConfig(steps=2, evaluations=4), with_test=False
    ) == pytest.approx(3.0 + 0.02 + 4.0 + 0.5)


def test_the_cost_of_a_plan_is_the_sum_of_its_stages():
    plan = [
        PlannedRuns("sanity", 3),
        PlannedRuns("search", 19, at_once=10),
        PlannedRuns("validation", 4, with_test=True),
    ]

    def seconds(stage):
        return (
            SecondsRange(7200.0, 3600.0, 10800.0)
            if stage.with_test
            else SecondsRange(3600.0, 1800.0, 7200.0)
        )

    alone = price_plan(plan, seconds, price=2.5)
    assert (alone.device_hours, alone.low, alone.high) == (30.0, 15.0, 56.0)
    assert (alone.money, alone.days) == (75.0, 30.0 / 24.0)
    four = price_plan(plan, seconds, devices=4, start=360.0)
    assert four.device_hours == pytest.approx(30.4)
    assert four.days * 24.0 == pytest.approx(0.1 + 1 + (3 + 3) + 2)
    assert four.money is None
    assert [row.stage for row in price_plan(plan, seconds, start=0.0).rows] == [
        "start-up",
        "sanity",
        "search",
        "validation",
    ]


def test_warm_up_and_evaluations_are_not_in_the_step(tmp_path):
    """The run has a known clock: 9 s for the first two steps, 0.5 s for each later one."""

    def train(changes, folder):
        folder.mkdir()
        with (folder / "metrics.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "seconds", "val_loss"])
            rows.writerows(
                [step, 9.0 + 0.5 * (step - 2), ""]
                for step in range(2, changes["training.steps"] + 1, changes["logger.every"])
            )
        checkpoint.save(folder / "checkpoint.pt", {"weights": {}, "about": {}})
        return 0.25

    speed = measure_timing(train, tmp_path, steps=8, warmup=2)
    assert (speed.step, speed.evaluation, speed.fixed, speed.start) == (0.5, 0.25, 0.0, 0.0)
    assert speed.save > 0.0


def study(folder, seconds):
    """Make a study with complete runs of these durations [s], a failed run and a copy."""
    space = Space((Dimension("x", "lin", 0.0, 1.0, start=0.5),))
    location = StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto")
    with Study(location, {}) as opened_study:
        ledger = PhaseLedger(opened_study, space, "search", {})
        for index, (time, tested) in enumerate(seconds):
            trial = ledger.start(index, (0.5,), {"x": 0.5}, test=tested)
            ledger.finish(trial, Result(1.0, time))
        for facts in ({}, {"copied_from": 0}):
            trial = ledger.start(99, (0.5,), {"x": 0.5}, test=False)
            ledger.finish(trial, Result(1.0 if facts else None, 1e6, facts=facts))
    return location


def test_the_durations_of_a_study_are_of_its_complete_runs_with_and_without_test(tmp_path):
    location = study(tmp_path, [(float(time), False) for time in range(11)] + [(50.0, True)])
    seconds = read_study_seconds("s", location.url)
    assert seconds(PlannedRuns("search", 1)) == (5.0, 1.0, 9.0)
    assert seconds(PlannedRuns("validation", 1, with_test=True)) == (50.0, None, None)


def test_a_study_without_validation_prices_it_by_its_other_runs(tmp_path):
    assert (
        read_study_seconds("s", study(tmp_path, [(4.0, False)]).url)(
            PlannedRuns("validation", 1, with_test=True)
        ).median
        == 4.0
    )


@pytest.mark.parametrize(
    ("name", "message"), [("s", "with complete trials"), ("other", "no study other")]
)
def test_a_missing_or_empty_study_is_refused_and_not_created(tmp_path, name, message):
    with pytest.raises(UserError, match="no study database"):
        read_study_seconds(name, f"sqlite:///{tmp_path}/study.db")
    assert not list(tmp_path.iterdir())
    location = study(tmp_path, [])
    with pytest.raises(UserError, match=message):
        read_study_seconds(name, location.url)
