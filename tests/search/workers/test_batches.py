"""Worker processes that evaluate their share of the trials as one batch, and die in the middle."""

import os
import signal
from collections import Counter

from search.workers.test_pool import alone, drive
from synaptune.search.trial import Failure, Result
from synaptune.search.workers.base import FinishedTrial, NeverStop

COUNT = 8  # trials at a time, in two processes


def make_batch_evaluation(act=lambda index, number: None):
    """Return an evaluation that calls `act` with index and number of a trial, and yields it."""

    def evaluate(trials, on_report):
        for trial in trials:
            result = act(trial.index, trial.number)
            facts = {"pid": os.getpid(), "batch": [other.index for other in trials]}
            yield FinishedTrial(trial, result or Result(float(trial.index), 0.0, facts=facts))

    return evaluate


def run(folder, evaluate, *, budget=COUNT, **settings):
    return drive(
        folder, evaluate, name="random", budget=budget, count=COUNT, processes=2, **settings
    )


def test_each_process_gets_an_equal_part_of_the_trials_and_keeps_its_process(tmp_path):
    trials = run(tmp_path, make_batch_evaluation(), budget=2 * COUNT)
    assert [trial.objective for trial in trials] == list(range(2 * COUNT))
    pids = Counter(trial.facts["pid"] for trial in trials)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert [trial.facts["batch"] for trial in trials[:COUNT]] == 4 * [[0, 1, 2, 3]] + 4 * [
        [4, 5, 6, 7]
    ]
    assert all(len(trial.facts["batch"]) <= 4 for trial in trials)


def test_a_killed_process_loses_no_ended_trial_and_its_others_run_again_alone(tmp_path):
    def die_once(index, number):
        if index == 2 and alone(tmp_path, index):
            os.kill(os.getpid(), signal.SIGKILL)

    said = []
    trials = run(tmp_path, make_batch_evaluation(die_once), said=said)
    assert [trial.objective for trial in trials] == list(range(COUNT))
    assert [trial.facts["batch"] for trial in trials] == [
        *([0, 1, 2, 3] for _ in range(2)),  # those that had ended
        [2],
        [3],
        *([4, 5, 6, 7] for _ in range(4)),
    ]
    assert [index for index, trial in enumerate(trials) if "attempts" in trial.facts] == [2, 3]
    assert sum("signal SIGKILL" in line for line in said) == 2


def test_a_trial_that_ends_its_process_each_time_fails_alone(tmp_path):
    def die(index, number):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trials = run(tmp_path, make_batch_evaluation(die))
    assert [(t.index, t.facts["failure"]) for t in trials if t.state == "failed"] == [(1, "worker")]


def test_a_broken_device_ends_the_process_and_every_trial_gets_another_one(tmp_path):
    def break_device(index, number):
        if index == 0 and alone(tmp_path, index):
            (tmp_path / "pid").write_text(str(os.getpid()))
            return Result(None, 0.0, failure=Failure("device", "CUDA error: told to fail"))

    trials = run(tmp_path, make_batch_evaluation(break_device))
    assert [trial.state for trial in trials] == ["complete"] * COUNT
    again = ["its worker was ended (CUDA error: told to fail)"]
    assert [t.facts.get("attempts") for t in trials] == 4 * [again] + 4 * [None]
    assert int((tmp_path / "pid").read_text()) not in {trial.facts["pid"] for trial in trials}


def test_an_error_of_a_batch_is_that_of_the_trials_that_had_not_ended(tmp_path):
    def fail(index, number):
        if index == 5:
            raise ArithmeticError("told to fail")

    trials = run(tmp_path, make_batch_evaluation(fail))
    failed = [(trial.index, trial.reason) for trial in trials if trial.state == "failed"]
    assert failed == [(index, "ArithmeticError: told to fail") for index in (5, 6, 7)]


def test_the_answer_to_a_report_reaches_the_trial_that_reported(tmp_path):
    def evaluate(trials, on_report):
        running = list(trials)
        for step in range(1, 4):  # as a program does: step by step, all trials
            for trial in list(running):
                if on_report(trial, step, float(trial.index)):
                    running.remove(trial)
                    yield FinishedTrial(trial, Result(None, 0.0, pruned=True, estimate=9.0))
        for trial in running:
            yield FinishedTrial(trial, Result(float(trial.index), 0.0))

    class Stopper(NeverStop):
        def __call__(self, trial, step, value):
            return (trial.index, step) in ((1, 1), (6, 2)) and value == trial.index

    trials = run(tmp_path, evaluate, judge=Stopper())
    assert [trial.index for trial in trials if trial.state == "pruned"] == [1, 6]
