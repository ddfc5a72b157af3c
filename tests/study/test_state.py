"""The state of a study and the plan of its search, as the report and the dashboard read them."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from synaptune import TrialManager
from synaptune.report.dashboard.study_status import read_statuses
from synaptune.study.database.locks import Holder
from synaptune.study.reader import find_study
from synaptune.study.state import SearchPlan, find_state, read_search_plan

SPACE = {"x": ("uniform", 0.0, 1.0)}


def search(folder, trials, objective=lambda p: p["x"]):
    manager = TrialManager(
        "s", n_trials=trials, sampler="random", seed=0, directory=folder, progress=False
    )
    manager.optimize(objective, SPACE)


def read_both(folder):
    """State, budget and ended trials, as the reader and the dashboard tell them."""
    snapshot = find_study(str(folder))
    (status,) = read_statuses(snapshot.url)
    ended = sum(trial.state != "running" for trial in snapshot.search_trials)
    told = (snapshot.state, snapshot.plan.budget, ended)
    assert (status.state, status.budget, status.search_phase.ended_count) == told
    return told


def test_a_continued_study_has_the_budget_of_its_latest_command(tmp_path):
    search(tmp_path, 3)
    assert read_both(tmp_path) == ("ended", 3, 3)  # although this process lives on
    search(tmp_path, 5)
    assert read_both(tmp_path) == ("ended", 5, 5)


def test_a_search_that_is_cut_off_is_interrupted_until_it_is_continued(tmp_path):
    def interrupt(point):
        if len(find_study(str(tmp_path)).trials) == 3:
            assert read_both(tmp_path) == ("running", 6, 2)
            raise KeyboardInterrupt
        return point["x"]

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, 6, interrupt)
    assert read_both(tmp_path) == ("interrupted", 6, 2)
    search(tmp_path, 6)
    assert read_both(tmp_path) == ("ended", 6, 6)


KILLED = """
import sys, time
from synaptune import TrialManager
def wait(point):
    print("begun", flush=True)
    time.sleep(60)
TrialManager("s", n_trials=2, sampler="random", seed=0, directory=sys.argv[1],
             progress=False).optimize(wait, {"x": ("uniform", 0.0, 1.0)})
"""


def test_a_killed_process_leaves_an_interrupted_study(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert read_both(tmp_path) == ("running", 2, 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_both(tmp_path) == ("interrupted", 2, 0)


def test_a_stopping_rule_ends_a_search_before_its_budget():
    closed = Holder.current("ended")
    cut, stopped = SearchPlan(300), SearchPlan(300, "stopped on a plateau")
    assert find_state(closed, cut, ended=120, open_count=0) == "interrupted"
    assert find_state(closed, stopped, ended=120, open_count=0) == "ended"
    assert find_state(closed, stopped, ended=120, open_count=1) == "interrupted"


def test_a_process_of_another_machine_is_running_while_it_sends_heartbeats():
    def find(seconds):
        seen = datetime.now(UTC) - timedelta(seconds=seconds)
        return find_state(Holder("elsewhere", 1, seen), SearchPlan(9), ended=3, open_count=1)

    assert (find(20), find(600)) == ("running", "interrupted")


def test_the_plan_of_an_earlier_version_is_that_of_the_shown_search():
    def plan(budget, phase="search", ended=40, **configuration):
        notes = {"engine": {"budget": budget}}
        return read_search_plan(notes, configuration, phase, ended).budget

    assert plan(60) == 60
    assert plan(12) is None  # it stored the budget of its first command
    settings = {"search.protocol": "phase2", "search.group_budget": 45}
    assert plan(60, "attention", **settings) == 45
    assert plan(60, "joint", **settings) == 60
