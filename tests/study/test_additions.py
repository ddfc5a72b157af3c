"""Enqueued points and imported trials: the Python API, the loop, a kill, and the commands."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest

from synaptune import TrialManager
from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.replay import replay
from synaptune.cli.main import main
from synaptune.core.errors import UserError
from synaptune.report.tables import list_key_numbers, tabulate_search_trials
from synaptune.search.trial import ENQUEUED, LEARNED
from synaptune.study.database.connection import make_sqlite_url
from synaptune.study.reader import read_study

SPACE = {"x": ("uniform", 0.0, 10.0), "n": ("int", 0, 8, 2), "mode": ("categorical", ["a", "b"])}
POINT = {"x": 3.0, "n": 2, "mode": "b"}
OPTIMIZERS = ["tpe", "cma", "OnePlusOne", "random", "grid", "cmaes"]


def bowl(params):
    return (params["x"] - 3.0) ** 2 + params["n"] + (params["mode"] == "a")


def make_manager(folder, **options):
    return TrialManager("s", **{"n_trials": 10, "directory": folder, "progress": False, **options})


def read(folder):
    return read_study(make_sqlite_url(folder / "study.db"), "s")


def list_trials(trials):
    return [(trial.index, trial.unit, trial.objective, ENQUEUED in trial.facts) for trial in trials]


@pytest.mark.parametrize("sampler", OPTIMIZERS)
def test_enqueued_points_come_first_and_the_optimizer_then_gives_its_own(tmp_path, sampler):
    plain = make_manager(tmp_path / "plain", sampler=sampler, n_trials=6, pruner=None)
    plain.optimize(bowl, SPACE)
    manager = make_manager(tmp_path / "queue", sampler=sampler, n_trials=6, pruner=None)
    manager.enqueue(POINT)
    manager.enqueue({"x": 4.0})
    manager.optimize(bowl, SPACE)
    trials = manager.trials
    assert len(trials) == 6  # enqueued points are part of the budget
    assert [ENQUEUED in trial.facts for trial in trials] == [True] * 2 + [False] * 4
    assert trials[0].values == POINT
    assert trials[1].values == {"x": 4.0, "n": 4, "mode": "b"}  # the others at the start
    assert trials[2].unit == plain.trials[0].unit
    assert manager.best_value == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OPTIMIZERS)
def test_a_search_with_additions_in_two_runs_is_the_search_in_one(tmp_path, sampler):
    def run(folder, *budgets):
        for budget in budgets:
            manager = make_manager(folder, sampler=sampler, n_trials=budget, pruner=None)
            manager.enqueue(POINT)
            manager.add_trial({"x": 2.9, "n": 0, "mode": "b"}, 0.01)
            manager.add_trial({"x": 9.0, "n": 8, "mode": "a"}, None)
            manager.optimize(bowl, SPACE, callbacks=add_later)
        return manager.trials

    def add_later(manager, trial):
        if trial.index == 3:
            manager.enqueue({"x": 1.0, "n": 0})
            manager.add_trial({"x": 2.0, "n": 2, "mode": "b"}, 3.0)

    whole = run(tmp_path / "whole", 14)
    assert sum(ENQUEUED in trial.facts for trial in whole) == 2
    parts = run(tmp_path / "parts", 1, 6, 14)
    assert list_trials(parts) == list_trials(whole)
    assert len(read(tmp_path / "parts").get_phase_trials("imported")) == 3
    (tmp_path / "parts/optimizer.pkl").unlink(missing_ok=True)  # the whole is replayed
    longer = run(tmp_path / "parts", 16), run(tmp_path / "whole", 16)
    assert list_trials(longer[0]) == list_trials(longer[1])


@pytest.mark.parametrize("sampler", ["tpe", "cma", "OnePlusOne"])
def test_imported_trials_move_the_later_points_and_count_nowhere(tmp_path, sampler):
    def run(name, *imported):
        manager = make_manager(tmp_path / name, sampler=sampler, pruner=None, n_trials=16)
        for x, value in imported:
            manager.add_trial({"x": x, "n": 0, "mode": "b"}, value, source="notebook")
        manager.optimize(bowl, SPACE)
        return manager

    plain, taught = run("plain"), run("taught", (3.0, -5.0), (9.0, 36.0), (8.0, 25.0))
    assert list_trials(plain.trials) != list_trials(taught.trials)
    assert taught.trials[0].unit == plain.trials[0].unit  # still begins at the start of the space
    assert len(taught.trials) == 16
    assert taught.best_value >= 0.0  # never an imported trial
    assert taught.trials[-1].facts[LEARNED] == 3
    evidence = gather_evidence(read(tmp_path / "taught"), deep=False)
    assert evidence.ended_count == sum(evidence.runs_by_phase.values()) == 16
    name = "imported trials (notebook), not among the evaluations"
    assert (name, "3") in list_key_numbers(evidence)


def test_a_point_that_the_study_has_is_not_evaluated_again_unless_asked(tmp_path):
    manager = make_manager(tmp_path, n_trials=3)
    manager.enqueue(POINT)
    manager.optimize(bowl, SPACE)
    again = make_manager(tmp_path, n_trials=6)
    again.enqueue(POINT)
    again.enqueue(POINT, skip_if_exists=False)
    again.optimize(bowl, SPACE)
    assert [trial.index for trial in again.trials if trial.values == POINT] == [0, 3]


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({"y": 1.0, "x": 11.0}, ["y: no searched parameter", "x=11.0: expected lin [0, 10]"]),
        ({"n": 3}, ["n=3: expected lin int [0, 8] step 2"]),
        ({"mode": "c"}, ["mode='c': expected choice"]),
        ({"x": object()}, ["a value of type object"]),
        ({}, ["no parameter"]),
    ],
)
def test_a_point_outside_the_space_is_refused_before_anything_runs(tmp_path, params, texts):
    manager = make_manager(tmp_path)
    manager.enqueue(params)
    with pytest.raises(UserError) as error:
        manager.optimize(bowl, SPACE)
    assert all(text in str(error.value) for text in texts)
    assert not (tmp_path / "study.db").exists()


PROGRAM = """
import sys, time
from pathlib import Path
from synaptune import TrialManager

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def bowl(params):
    (folder / "started").touch()
    time.sleep(60.0 if seconds and params["x"] == 3.0 else seconds)  # until it is killed
    return (params["x"] - 3.0) ** 2 + params["n"] + (params["mode"] == "a")

space = {"x": ("uniform", 0.0, 10.0), "n": ("int", 0, 8, 2), "mode": ("categorical", ["a", "b"])}
TrialManager(
    "s", n_trials=12, directory=folder, sampler="cma", progress=False, pruner=None
).optimize(bowl, space)
"""


def run_program(folder, seconds=0.0):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(seconds)])


def wait_for(condition):
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_running_search_takes_a_point_of_the_command_and_a_kill_neither_loses_nor_repeats_it(
    tmp_path, capsys
):
    folder = tmp_path / "s"
    folder.mkdir()
    process = run_program(folder, 0.4)
    try:
        wait_for((folder / "started").exists)
        assert main(["enqueue", str(folder), "x=3.0", "n=0", "mode=b", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["enqueued"]
        assert content["values"] == {"x": 3.0, "n": 0, "mode": "b"}
        wait_for(lambda: any(ENQUEUED in trial.facts for trial in read(folder).trials))
    finally:
        process.send_signal(signal.SIGKILL)  # while the enqueued point runs
        process.wait()
    (killed,) = [trial for trial in read(folder).trials if ENQUEUED in trial.facts]
    assert killed.state == "running"
    assert run_program(folder).wait() == 0
    trials = read(folder).search_trials
    assert len(trials) == 12
    (enqueued,) = [trial for trial in trials if ENQUEUED in trial.facts]
    assert (enqueued.number, enqueued.objective) == (killed.number, 0.0)
    plain = make_manager(tmp_path / "plain", sampler="cma", n_trials=12, pruner=None)
    plain.optimize(bowl, SPACE)
    size = 4 + 3  # of the first generation, which the point shares
    own = [trial.unit for trial in trials if ENQUEUED not in trial.facts][: size - 1]
    assert own == [trial.unit for trial in plain.trials][: size - 1]
    assert main(["enqueue", str(folder), "x=3.0", "n=0", "mode=b"]) == 0
    assert f"trial {enqueued.number} has this point (complete, objective 0)" in (
        capsys.readouterr().out
    )
    table = tabulate_search_trials(gather_evidence(read(folder), deep=False))
    place = [column.heading for column in table.columns].index("proposed by")
    assert [row[place] for row in table.rows].count("a user") == 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two studies of the same search space, and an export of the second."""
    folder = tmp_path_factory.mktemp("pair")
    for name, seed in (("a", 0), ("b", 1)):
        manager = make_manager(folder / name / "s", sampler="tpe", seed=seed, n_trials=5)
        manager.optimize(bowl, SPACE)
    assert main(["export", str(folder / "b/s"), "--out", str(folder / "b.csv"), "--quiet"]) == 0
    return folder


def write_table(path, columns, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def test_trials_of_a_study_a_table_and_an_export_are_imported_once(pair, tmp_path, capsys):
    target = str(pair / "a/s")
    assert main(["import", target, str(pair / "b/s"), "--json"]) == 0
    # The first trial of both, the start of the space, is one of the study's own.
    assert json.loads(capsys.readouterr().out)["added"] == 4
    assert main(["import", target, str(pair / "b.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **{"study": "s", "phase": "search", "added": 0, "known": 5, "outside": 0}
    }
    table = write_table(
        tmp_path / "optuna.csv",
        ("number", "value", "params_x", "params_n", "state"),
        *((0, 4.5, 1.0, 2, "COMPLETE"), (1, "", 2.0, 4, "FAIL"), (2, 1.0, 30.0, 4, "COMPLETE")),
        (3, "", 2.0, 4, "RUNNING"),
    )
    assert main(["import", target, table]) == 2
    assert "mode=VALUE" in capsys.readouterr().err
    assert main(["import", target, table, "mode=a"]) == 0
    said = capsys.readouterr().out
    assert "imported 2 of 3 finished trials" in said
    assert "1 lie outside its ranges" in said
    snapshot = read(pair / "a/s")
    imported = snapshot.get_phase_trials("imported")
    assert [trial.index for trial in imported] == list(range(6))
    assert {trial.facts["source"] for trial in imported} == {"study s", "optuna.csv"}
    assert [trial.state for trial in imported[-2:]] == ["complete", "failed"]
    assert len(snapshot.search_trials) == 5
    assert snapshot.state == "ended"
    continued = make_manager(pair / "a/s", sampler="tpe", n_trials=7)
    continued.optimize(bowl, SPACE)
    assert continued.trials[-1].facts[LEARNED] == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["missing.csv"], "missing.csv"),
        (["nowhere"], "no study database"),
        (["TABLE"], "without n, mode"),
        (["TABLE", "n=0", "mode=a", "x=4"], "t.csv has x itself"),
        (["STUDY", "x=4.0"], "study s has x itself"),
        (["TABLE", "n=0", "~mode=a"], "~mode=a"),
        (["TABLE", "n=0", "mode=a", "z=1"], "z, which the study does not search"),
        (["TABLE", "n=0", "mode=a", "--objective", "losss"], "closest: loss"),
    ],
)
def test_what_cannot_be_imported_is_refused(pair, tmp_path, capsys, words, text):
    table = write_table(tmp_path / "t.csv", ("loss", "x"), (1.0, 2.0))
    words = [{"TABLE": table, "STUDY": str(pair / "a/s")}.get(word, word) for word in words]
    assert main(["import", str(pair / "b/s"), *words]) == 2
    assert text in capsys.readouterr().err
    assert not read(pair / "b/s").get_phase_trials("imported")


def test_a_value_that_is_removed_is_not_enqueued(pair, capsys):
    assert main(["enqueue", str(pair / "b/s"), "~x=3.0"]) == 2
    assert "got ~x=3.0" in capsys.readouterr().err


def test_the_analysis_replays_a_search_with_additions(tmp_path):
    manager = make_manager(tmp_path, sampler="cma", n_trials=21, pruner=None)
    manager.enqueue(POINT)
    manager.enqueue({"x": 9.0})
    manager.add_trial({"x": 2.9, "n": 0, "mode": "b"}, 0.01)
    manager.optimize(bowl, SPACE)
    replayed = replay(read(tmp_path))
    assert replayed.note == ""
    assert [len(batch.trials) for batch in replayed.batches] == [5, 7, 7]
    assert len(replayed.diagnostics) == 3
