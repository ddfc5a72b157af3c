"""The search loop with a study in a database: resume, rebuild, failures.

All evaluations are real evaluations of a small function.
"""

import errno
import os
import pickle
import re
import signal
import sqlite3

import optuna
import pytest

from synaptune.core.errors import UserError
from synaptune.core.signing import sign, verify
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.loop import Search, run_searches
from synaptune.search.optimizers.registry import Engine
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.plan import Plan
from synaptune.search.runner import catch_interrupts, check_interrupted
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, find_best
from synaptune.search.workers.base import BatchWorkers, InlineWorkers, run_trial
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.errors import DivergedError

SPACE = Space(
    (Dimension("x", "lin", 0.0, 10.0, start=1.0), Dimension("y", "log", 1.0, 100.0, start=10.0))
)


class Killed(KeyboardInterrupt):
    """Ends the process's work in the middle of a trial, as a kill does."""


def bowl(values):
    return (values["x"] - 3.0) ** 2 + values["y"] / 100.0


def made(evaluate, count):
    """Workers of this process: one at a time, or batches as a launcher of Hydra's takes them."""

    def run(trial):
        return Result(evaluate(trial.values), 0.0)

    return (
        InlineWorkers(run)
        if count == 1
        else BatchWorkers(lambda batch: (run_trial(run, trial) for trial in batch), count)
    )


def drive(
    folder, *, name="cma", budget=25, evaluate=bowl, workers=1, rate=0.5, said=None, maximize=False
):
    engine = Engine(name, 7, workers=3, grid_points=5)
    with Study(
        StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto"),
        {"a": 1},
        maximize=maximize,
    ) as study:
        ledger = PhaseLedger(study, SPACE, "search", {"seed": 0})
        state = StateFile(folder / "optimizer.pkl", engine, SPACE.describe())
        plan = Plan(budget, maximize=maximize, max_failure_rate=rate)
        said = [] if said is None else said
        return run_searches(
            [Search(SPACE, engine, plan, ledger, state, on_message=said.append)],
            made(evaluate, workers),
        )[0]


def drive_together(folder, phases, *, budget=25, evaluate=bowl, workers=1, sizes=None):
    """Searches of several phases of one study at a time; their trials by phase.

    Sizes: takes the number of trials of each batch.
    """

    def batch(trials):
        if sizes is not None:
            sizes.append(len(trials))
        return (
            run_trial(lambda trial: Result(evaluate(trial.values), 0.0), trial) for trial in trials
        )

    with Study(
        StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto"), {"a": 1}
    ) as study:
        searches = []
        for seed, phase in enumerate(phases, 7):
            engine = Engine("cma", seed)
            state = StateFile(folder / f"optimizer-{phase}.pkl", engine, SPACE.describe())
            searches.append(
                Search(SPACE, engine, Plan(budget), PhaseLedger(study, SPACE, phase, {}), state)
            )
        return dict(zip(phases, run_searches(searches, BatchWorkers(batch, workers)), strict=True))


def dying_at(count):
    calls = []

    def evaluate(values):
        calls.append(values)
        if len(calls) == count:
            raise Killed
        return bowl(values)

    return evaluate


def sequence(trials):
    return [(trial.number, trial.index, trial.unit, trial.objective) for trial in trials]


@pytest.mark.parametrize(
    "name", ["cma", "random", "grid", "OnePlusOne", "tpe", "gp", "cmaes", "qmc"]
)
def test_a_search_killed_in_any_generation_ends_as_the_undisturbed_one(tmp_path, name):
    budget = 16 if name == "gp" else 25
    whole, said = sequence(drive(tmp_path / "whole", name=name, budget=budget)), []
    for deaths, count in enumerate((1, 4, 9, 2)):
        with pytest.raises(Killed):
            drive(
                tmp_path / "killed",
                name=name,
                budget=budget,
                evaluate=dying_at(count),
                workers=1 + deaths % 2,
                said=said,
            )
    assert sequence(drive(tmp_path / "killed", name=name, budget=budget, said=said)) == whole
    assert all(line.startswith("running when their process ended") for line in said)


def asked(trials):
    return [(trial.index, trial.unit, trial.objective) for trial in trials]


@pytest.mark.parametrize("workers", [1, 10])
def test_searches_side_by_side_ask_what_each_would_alone_through_kills(tmp_path, workers):
    alone = asked(drive(tmp_path / "alone"))
    for count in (1, 9, 30):
        with pytest.raises(Killed):
            drive_together(tmp_path / "both", ["a", "b"], evaluate=dying_at(count), workers=workers)
    both = drive_together(tmp_path / "both", ["a", "b"], workers=workers)
    assert asked(both["a"]) == alone
    assert [trial.state for trial in both["b"]] == ["complete"] * 25
    assert asked(both["b"]) != alone
    assert len({trial.number for trials in both.values() for trial in trials}) == 50
    assert both["b"][0].number < both["a"][2].number


def test_a_search_that_waits_for_its_generation_leaves_its_workers_to_others(tmp_path):
    one, two = [], []
    drive_together(tmp_path / "one", ["a"], workers=10, sizes=one)
    drive_together(tmp_path / "two", ["a", "b"], workers=10, sizes=two)
    assert max(one) == 6  # a generation
    assert two[0] == 10
    assert len(two) < 2 * len(one)


def test_one_search_of_several_that_fails_too_often_stops_all_and_keeps_what_ended(tmp_path):
    calls = []

    def broken(values):
        calls.append(values)
        if len(calls) > 8:
            raise ArithmeticError("no more")
        return bowl(values)

    with pytest.raises(UserError, match="ArithmeticError: no more"):
        drive_together(tmp_path, ["a", "b"], evaluate=broken, workers=2)
    both = drive_together(tmp_path, ["a", "b"], workers=2)
    assert [len(trials) for trials in both.values()] == [25, 25]


@pytest.mark.parametrize("damage", ["missing", "garbage", "another library"])
def test_without_its_state_file_a_search_is_rebuilt_from_the_study_and_says_so(tmp_path, damage):
    whole = sequence(drive(tmp_path / "whole"))
    drive(tmp_path / "part", budget=14)
    path = tmp_path / "part/optimizer.pkl"
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"\x80\x05garbage")
    else:
        snapshot = pickle.loads(verify(path.read_bytes()))
        object.__setattr__(snapshot, "libraries", ("0",))
        path.write_bytes(sign(pickle.dumps(snapshot)))
    said = []
    assert sequence(drive(tmp_path / "part", said=said)) == whole
    assert "rebuilt from the study's 14 trials" in said[0]


class Payload:
    """A pickle that runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("signature", [b"", bytes(32)])
def test_a_state_file_of_another_user_runs_no_code(tmp_path, signature):
    whole = sequence(drive(tmp_path / "whole"))
    drive(tmp_path / "part", budget=14)
    content = pickle.dumps(Payload(tmp_path / "ran"))
    (tmp_path / "part/optimizer.pkl").write_bytes(signature + content)
    said = []
    assert sequence(drive(tmp_path / "part", said=said)) == whole
    assert not (tmp_path / "ran").exists()
    assert "not written by this user on this machine" in said[0]


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_key_that_others_can_read_signs_nothing(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path))
    signed = sign(b"content")
    assert verify(signed) == b"content"
    (tmp_path / "signing.key").chmod(mode)
    assert sign(b"content") is None
    assert verify(signed) is None


def test_a_search_whose_points_cannot_be_repeated_goes_on_from_their_losses(tmp_path):
    drive(tmp_path, budget=14)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute(
            "update trial_user_attributes set value_json='[0.5, 0.5]' where key='unit' and"
            " trial_id=2"
        )
    (tmp_path / "optimizer.pkl").unlink()
    said = []
    trials = drive(tmp_path, said=said)
    assert len(trials) == 25
    assert "continues from their losses" in said[0]


def test_more_budget_continues_and_less_runs_nothing(tmp_path):
    first = sequence(drive(tmp_path, budget=8))
    assert sequence(drive(tmp_path, budget=5)) == first
    assert sequence(drive(tmp_path, budget=12))[:8] == first


def test_failed_trials_are_kept_with_reason_and_traceback_and_count(tmp_path):
    def evaluate(values):
        if values["x"] > 4.0:
            raise ArithmeticError("too far")
        return float("nan") if values["x"] < 0.5 else bowl(values)

    trials = drive(tmp_path, name="random", budget=12, evaluate=evaluate, rate=1.0)
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(trials) == 12
    assert failed
    raised = next(trial for trial in failed if trial.values["x"] > 4.0)
    assert raised.reason == "ArithmeticError: too far"
    assert "in evaluate" in raised.facts["traceback"]
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.state.name for trial in stored] == [
        "FAIL" if trial.state == "failed" else "COMPLETE" for trial in trials
    ]


def test_too_many_failures_stop_the_search_with_the_first_real_error(tmp_path):
    def broken(values):
        raise ArithmeticError(f"x={values['x']}")

    with pytest.raises(
        UserError, match=r"first was trial 0: ArithmeticError: x=1\.0[\s\S]*Traceback"
    ):
        drive(tmp_path, evaluate=broken)
    assert len(drive(tmp_path, budget=10)) == 10


def test_a_diverged_run_is_a_failed_trial_and_the_search_goes_on(tmp_path):
    def evaluate(values):
        if values["x"] > 4.0:
            raise DivergedError(3, float("nan"))
        return bowl(values)

    trials = drive(tmp_path, name="random", budget=12, evaluate=evaluate, rate=1.0)
    assert [trial.state for trial in trials] == [
        "failed" if trial.values["x"] > 4.0 else "complete" for trial in trials
    ]
    assert {"failed", "complete"} == {trial.state for trial in trials}


def test_a_mistake_in_one_point_is_one_failed_trial(tmp_path):
    def evaluate(values):
        if calls.append(1) or len(calls) == 3:
            raise UserError("got heads=3\n  expected: a divisor of 64\n  to do: correct it")
        return bowl(values)

    calls = []
    trials = drive(tmp_path, budget=6, evaluate=evaluate)
    assert [trial.state for trial in trials] == [
        *["complete"] * 2,
        "failed",
        *["complete"] * 3,
    ]
    assert trials[2].reason.startswith("got heads=3")
    assert trials[2].facts["failure"] == "mistake"


def test_a_search_whose_every_trial_failed_says_why_each_time(tmp_path):
    def evaluate(values):
        raise ValueError("no such data set") if values["x"] > 2.0 else KeyError("x")

    places = []
    for _ in range(2):
        with pytest.raises(UserError) as refusal:
            drive(tmp_path, name="random", budget=3, evaluate=evaluate, rate=1.0)
        assert "got 3 trials, and every one failed" in str(refusal.value)
        assert re.search(r"\d x ValueError: no such data set", str(refusal.value))
        assert 'File "' not in str(refusal.value)
        places.append(re.findall(r"raised in evaluate, line \d+ of .*py\n", str(refusal.value)))
    assert list(map(len, places)) == [1, 0]  # the second command ran no trial


def test_a_full_disk_stops_and_leaves_the_trial_to_be_run_again(tmp_path):
    def evaluate(values):
        if calls.append(1) or len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return bowl(values)

    calls = []
    with pytest.raises(UserError, match="full disk"):
        drive(tmp_path, budget=6, evaluate=evaluate)
    assert sequence(drive(tmp_path, budget=6)) == sequence(drive(tmp_path / "whole", budget=6))


def test_what_ended_beside_a_fatal_trial_is_kept_and_heard_of(tmp_path):
    def evaluate(values):
        if calls.append(1) or len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return bowl(values)

    class Ended(Callback):
        def on_end(self, trial, finished):
            heard.append(trial.index)

    calls, heard, engine = [], [], Engine("random", 7, workers=4)
    with Study(
        StudyLocation("s", tmp_path, f"sqlite:///{tmp_path}/study.db", "auto"), {"a": 1}
    ) as study:
        ledger = PhaseLedger(study, SPACE, "search", {})
        state = StateFile(tmp_path / "optimizer.pkl", engine, SPACE.describe())
        found = Search(
            SPACE,
            engine,
            Plan(8),
            ledger,
            state,
            callbacks=CallbackList([Ended()]),
        )
        with pytest.raises(UserError, match="full disk"):
            run_searches([found], made(evaluate, 4))
        assert [trial.state for trial in ledger.read_trials()] == [
            "running",
            "complete",
            "complete",
            "complete",
        ]
    assert heard == [1, 2, 3]


def test_a_press_of_ctrl_c_in_the_last_trial_of_a_stage_outlasts_it(tmp_path):
    def evaluate(values):
        if calls.append(1) or len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return bowl(values)

    calls = []
    with catch_interrupts():
        assert len(drive(tmp_path, budget=6, evaluate=evaluate)) == 6
        with pytest.raises(KeyboardInterrupt):
            check_interrupted()
        with pytest.raises(KeyboardInterrupt):  # the next stage runs nothing
            drive(tmp_path, budget=9, evaluate=evaluate)
    assert len(calls) == 6
    check_interrupted()


def test_the_best_follows_the_direction(tmp_path):
    trials = drive(tmp_path, name="random", maximize=True)
    assert find_best(trials, maximize=True).objective == max(trial.objective for trial in trials)
    assert find_best(trials).objective == min(trial.objective for trial in trials)


@pytest.mark.parametrize("plan", [Plan(0), Plan(5, retries=-1), Plan(5, max_failure_rate=1.5)])
def test_a_plan_that_cannot_run_is_refused(plan):
    with pytest.raises(UserError, match="to do"):
        plan.check()


def test_a_mistake_whose_cause_is_a_full_disk_ends_the_search(tmp_path):
    def evaluate(values):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise UserError("got no space to write a checkpoint") from error

    with pytest.raises(UserError, match="got no space to write a checkpoint"):
        drive(tmp_path, budget=6, evaluate=evaluate)
