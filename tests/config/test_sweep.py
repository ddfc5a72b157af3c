"""`python app.py -m hydra/sweeper=...` as a user runs it: real processes, killed for real."""

import json
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml

from helpers import processes
from helpers.paths import APPS

APP = APPS / "app.py"
RANGES = ["x=interval(0,10)", "y=tag(log, interval(1,100))"]


def command(*words):
    return [str(APP), "-m", *words]


def sweep(folder, *words):
    return processes.run(command(*words), folder)


def trials(folder, name):
    return optuna.load_study(
        study_name=name, storage=f"sqlite:///{folder}/outputs/studies/{name}/study.db"
    ).trials


def kill_after(folder, count, words, how=signal.SIGKILL, *, fresh=False):
    """Start a sweep and end it once `count` evaluations have begun; returns its stderr."""
    log = folder / "log"
    process = processes.start(command(*words), folder, fresh=fresh)
    begun = time.monotonic()
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 60
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=900)[1], process.returncode


@pytest.mark.parametrize("strategy", ["cma", "random", "grid"])
def test_a_killed_sweep_loses_nothing_finished_and_counts_exactly(tmp_path, strategy):
    words = [
        f"hydra/sweeper={strategy}",
        "hydra.sweeper.optim.budget=8",
        "seconds=0.1",
        f"log={tmp_path}/log",
        *RANGES,
    ]
    name = f"app-{strategy}"
    kill_after(tmp_path, 4, words, fresh=strategy == "cma")
    before = trials(tmp_path, name)
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 3 + ["RUNNING"]
    ended = sweep(tmp_path, *words)
    assert ended.returncode == 0, ended.stderr
    after = trials(tmp_path, name)
    assert [trial.number for trial in after] == list(range(8))
    assert all(trial.state.name == "COMPLETE" for trial in after)
    assert [(t.params, t.value, t.datetime_complete) for t in after[:3]] == [
        (t.params, t.value, t.datetime_complete) for t in before[:3]
    ]
    assert after[3].params == before[3].params
    runs = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [int(run[0]) for run in runs] == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    best = yaml.safe_load((tmp_path / f"outputs/studies/{name}/best.yaml").read_text())[
        "parameters"
    ]
    assert best == min(after, key=lambda trial: trial.value).params
    assert (tmp_path / f"outputs/studies/{name}/trials/7/.hydra/config.yaml").exists()
    assert not (tmp_path / "multirun").exists()


def test_ctrl_c_ends_politely_and_the_same_command_goes_on(tmp_path):
    words = [
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=4",
        "seconds=0.5",
        f"log={tmp_path}/log",
        *RANGES,
    ]
    stderr, code = kill_after(tmp_path, 2, words, signal.SIGINT)
    assert code == 130
    assert "waiting for the running trials" in stderr
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    assert [trial.state.name for trial in trials(tmp_path, "app-random")] == ["COMPLETE"] * 2
    assert sweep(tmp_path, *words, "study.resume=must").returncode == 0
    assert [trial.state.name for trial in trials(tmp_path, "app-random")] == ["COMPLETE"] * 4


def test_ctrl_c_twice_stops_now_and_the_trial_is_run_again(tmp_path):
    words = ["hydra/sweeper=random", "hydra.sweeper.optim.budget=2", f"log={tmp_path}/log", *RANGES]
    process = processes.start(command(*words, "seconds=60"), tmp_path)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(3.0)  # two signals in one moment would arrive as one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=900)[1]
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert [trial.state.name for trial in trials(tmp_path, "app-random")] == ["RUNNING"]
    assert sweep(tmp_path, *words).returncode == 0
    assert [trial.state.name for trial in trials(tmp_path, "app-random")] == ["COMPLETE"] * 2


def test_two_sweeps_of_one_study_at_once_are_refused(tmp_path):
    words = [
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=3",
        "seconds=2",
        f"log={tmp_path}/log",
        *RANGES,
    ]
    process = processes.start(command(*words), tmp_path)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    second = sweep(tmp_path, *words)
    process.kill()
    process.wait()
    assert second.returncode == 2
    assert "another process" in second.stderr


def test_any_nevergrad_algorithm_sweeps_several_at_a_time(tmp_path):
    options = [
        "hydra.sweeper.optim.optimizer=DE",
        "hydra.sweeper.optim.num_workers=3",
        "hydra.sweeper.optim.budget=7",
    ]
    ended = sweep(tmp_path, "hydra/sweeper=nevergrad", *options, *RANGES)
    assert ended.returncode == 0, ended.stderr
    stored = trials(tmp_path, "app-de")
    assert [trial.user_attrs["generation"] for trial in stored] == [0, 0, 0, 1, 1, 1, 2]
    assert stored[0].user_attrs["data_fingerprint"] == "d1"
    assert stored[0].user_attrs["height"] == 1.0
    assert stored[0].user_attrs["phase"] == "search"


@pytest.mark.parametrize("strategy", ["tpe", "gp", "cmaes", "qmc"])
def test_every_sampler_of_optuna_is_one_word_on_the_command_line(tmp_path, strategy):
    weighted = "+hydra.sweeper.parametrization={kind: {choices: [a, b], weights: [1, 3]}}"
    ended = sweep(
        tmp_path, f"hydra/sweeper={strategy}", "hydra.sweeper.optim.budget=3", weighted, *RANGES
    )
    assert ended.returncode == 0, ended.stderr
    stored = trials(tmp_path, f"app-{strategy}")
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 3
    assert len({trial.params["x"] for trial in stored}) == 3
    assert {trial.params["kind"] for trial in stored} <= {"a", "b"}


def test_failed_trials_are_recorded_and_the_sweep_goes_on(tmp_path):
    ended = sweep(
        tmp_path, "hydra/sweeper=random", "hydra.sweeper.optim.budget=5", "fail=[1,3]", *RANGES
    )
    assert ended.returncode == 0, ended.stderr
    stored = trials(tmp_path, "app-random")
    assert [trial.state.name for trial in stored] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]
    assert "told to fail" in stored[1].user_attrs["reason"]
    assert "Traceback" in stored[1].user_attrs["traceback"]


def test_a_sweep_that_reached_its_target_is_over_until_the_target_changes(tmp_path):
    words = [
        "hydra/sweeper=nevergrad",
        "hydra.sweeper.optim.optimizer=OnePlusOne",
        "hydra.sweeper.optim.budget=5",
        *RANGES,
    ]
    for _ in range(2):
        ended = sweep(tmp_path, *words, "+stop.target=1e6")
        assert "stopped at objective" in ended.stdout, ended.stderr
        assert len(trials(tmp_path, "app-oneplusone")) == 1
    assert sweep(tmp_path, *words).returncode == 0
    assert len(trials(tmp_path, "app-oneplusone")) == 5


@pytest.mark.parametrize("words", [("x=choice(3)",), ("x=1,2", "x=3"), ()])
def test_a_sweep_with_nothing_to_search_runs_one_trial_that_can_be_reported(tmp_path, words):
    for finished in "", ", 1 finished before":
        ended = sweep(tmp_path, "hydra/sweeper=random", *words)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("nothing to search, one trial")
        assert f"1 trials{finished} (" in ended.stdout
    assert [trial.state.name for trial in trials(tmp_path, "app-random")] == ["COMPLETE"]
    report = processes.run(["-m", "synaptune.cli", "report", "app-random"], tmp_path)
    assert report.returncode == 0, report.stderr


def test_a_value_fixed_on_the_command_line_is_not_searched(tmp_path):
    parametrization = (
        "+hydra.sweeper.parametrization={x: {lower: 0, upper: 10}, y: 'interval(1,100)'}"
    )
    assert (
        sweep(
            tmp_path, "hydra/sweeper=random", "hydra.sweeper.optim.budget=2", parametrization, "x=3"
        ).returncode
        == 0
    )
    assert all(set(trial.params) == {"y"} for trial in trials(tmp_path, "app-random"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.sweeper.optim.budget=0"], "budget=0"),
        (["hydra.sweeper.optim.num_workers=-1"], "num_workers=-1"),
        (["xx=interval(0,1)"], "closest: x"),
        (["study.resume=must"], "no study"),
        (["+stop.hours=-1"], "stop.hours=-1"),
        (["study.name=a/b"], "study.name=a/b"),
        (["study.dir=/proc/none"], "the folder /proc/none: "),
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x, one folder for all runs"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(tmp_path, words, said):
    ended = sweep(tmp_path, "hydra/sweeper=random", *RANGES, *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "to do" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("trials/0"))


def test_another_configuration_under_the_same_name_is_refused_with_what_differs(tmp_path):
    words = ["hydra/sweeper=random", "hydra.sweeper.optim.budget=2"]
    assert sweep(tmp_path, *words, *RANGES).returncode == 0
    ended = sweep(tmp_path, *words, "x=interval(0,5)", RANGES[1], "kind=b")
    assert ended.returncode == 2
    assert "kind: the study has a, this command b" in ended.stderr
    assert "search.space.x: the study has lin [0, 10], this command lin [0, 5]" in ended.stderr
    assert sweep(tmp_path, *words, *RANGES, "hydra.sweeper.optim.budget=3").returncode == 0
    assert len(trials(tmp_path, "app-random")) == 3


def test_the_plugins_schema_is_light():
    code = (
        "import sys, json, hydra_plugins.synaptune.sweeper; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert not {"torch", "nevergrad", "optuna", "lightning", "numpy"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["+workers.kind=processes"]]
)
def test_jobs_side_by_side_find_what_one_after_another_finds(tmp_path, where):
    words = ["hydra/sweeper=random", "hydra.sweeper.optim.budget=4", *RANGES]
    assert sweep(tmp_path, *words, "+study.name=one").returncode == 0
    ended = sweep(tmp_path, *words, "+study.name=two", "hydra.sweeper.optim.num_workers=2", *where)
    assert ended.returncode == 0, ended.stderr
    one, two = (
        {trial.number: (trial.params, trial.value) for trial in trials(tmp_path, name)}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 4
