"""Several processes run one study of TrialManager: one sequence of points, nothing lost."""

import itertools
import json
import signal
import subprocess
import sys
import time

import pytest

from synaptune import TrialManager
from synaptune.search.optimizers.uniform_grid import UniformOptimizer
from synaptune.study.database.lease import read_stored_note

SPACE = {"x": ("uniform", 0.0, 10.0), "n": ("int", 1, 9)}
# Runs one study for each line of JSON on its standard input. A first trial waits until `processes`
# processes have one, so that all of them take part, and a trial hangs while there is a file `hang`.
WORKER = """
import json, sys, time
from pathlib import Path
from synaptune import TrialManager

def run(folder, processes, **options):
    own, seen, folder, name = [], 0, Path(folder), sys.argv[1]
    hang, started = folder / f"hang{name}", folder / f"started{name}"

    def objective(params):
        started.touch()
        while hang.exists() or len(list(folder.glob("started*"))) < processes:
            time.sleep(0.01)
        return (params["x"] - 3.0) ** 2 + params["n"]

    def note(manager, trial):
        nonlocal seen
        own.append(trial.index)
        seen = max(seen, len(manager.trials))

    manager = TrialManager("s", directory=folder, progress=False, **options)
    space = {"x": ("uniform", 0.0, 10.0), "n": ("int", 1, 9)}
    space = space if name == "0" else dict(reversed(space.items()))
    best = manager.optimize(objective, space, callbacks=note)
    return {"own": own, "seen": seen, "best": best, "value": manager.best_value}

for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
"""


class Worker:
    """A process that runs studies."""

    def __init__(self, name):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, folder, processes=1, **options):
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"folder": str(folder), "processes": processes, **options}) + "\n"
        )
        self.process.stdin.flush()

    def wait(self):
        assert self.process.stdout is not None
        return json.loads(next(line for line in self.process.stdout if line.startswith("{")))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def pair():
    workers = [Worker("0"), Worker("1")]
    yield workers
    for worker in workers:
        worker.kill()


def make_manager(folder, **options):
    return TrialManager("s", directory=folder, progress=False, **options)


def wait_for(condition):
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def run_pair(pair, folder, **options):
    """Run a study in both processes at once; return its trials and what the processes returned."""
    for worker in pair:
        worker.begin(folder, 2, **options)
    results = [worker.wait() for worker in pair]
    trials = make_manager(folder, **options).trials
    own = [result["own"] for result in results]
    assert all(own)
    assert sorted(itertools.chain(*own)) == [trial.index for trial in trials]
    assert [trial.index for trial in trials] == list(range(len(trials)))
    assert {trial.state for trial in trials} == {"complete"}
    best = min(trials, key=lambda trial: trial.objective)
    assert [result["value"] for result in results] == [best.objective] * 2
    assert [result["best"] for result in results] == [best.values] * 2
    assert any(result["seen"] > len(result["own"]) for result in results)
    return trials


def test_two_processes_share_the_points_of_one_random_sequence(tmp_path, pair):
    trials = run_pair(pair, tmp_path, sampler="random", n_trials=12, seed=None)
    url = f"sqlite:///{tmp_path}/study.db"
    engine = read_stored_note(url, "s", "engine")
    stream = UniformOptimizer(2, engine["seed"], engine["workers"])
    assert [trial.unit for trial in trials] == [stream.ask() for _ in trials]


def test_two_processes_run_every_point_of_a_grid_once(tmp_path, pair):
    trials = run_pair(pair, tmp_path, sampler="grid", n_trials=None)
    points = [trial.unit for trial in trials]
    assert len(points) == len(set(points)) == 9
    single = make_manager(tmp_path / "single", sampler="grid", n_trials=None)
    single.optimize(lambda params: 0.0, SPACE)
    assert {tuple(sorted(trial.values.items())) for trial in trials} == {
        tuple(sorted(trial.values.items())) for trial in single.trials
    }


def test_two_processes_learn_the_generations_of_one(tmp_path, pair, postgres_url):
    options = {"sampler": "cma", "n_trials": 20, "storage": postgres_url}
    trials = run_pair(pair, tmp_path / "pair", **options)
    single = make_manager(tmp_path / "single", sampler="cma", n_trials=20)
    names = list(trials[0].values)
    single.optimize(
        lambda params: (params["x"] - 3.0) ** 2 + params["n"], {name: SPACE[name] for name in names}
    )
    assert [(trial.unit, trial.objective) for trial in trials] == [
        (trial.unit, trial.objective) for trial in single.trials
    ]


def test_a_model_sampler_gives_two_processes_different_points(tmp_path, pair):
    trials = run_pair(pair, tmp_path, sampler="tpe", n_trials=14)
    assert len({trial.unit for trial in trials}) == 14
    more = make_manager(tmp_path, sampler="tpe", n_trials=18)
    more.optimize(lambda params: params["x"], SPACE)
    assert [trial.index for trial in more.trials] == list(range(18))
    assert len({trial.unit for trial in more.trials}) == 18


@pytest.mark.slow
def test_processes_take_turns_with_an_optimizer_whose_generation_is_one_point(tmp_path, pair):
    for worker in pair:
        worker.begin(tmp_path, sampler="OnePlusOne", n_trials=6)
    results = [worker.wait() for worker in pair]
    assert sum(len(result["own"]) for result in results) == 6
    trials = make_manager(tmp_path).trials
    assert [trial.index for trial in trials] == list(range(6))


@pytest.mark.parametrize(
    ("sampler", "database"),
    [
        ("cma", "sqlite"),
        pytest.param("tpe", "sqlite", marks=pytest.mark.slow),
        ("random", "postgres"),
    ],
)
def test_the_trial_of_a_killed_process_runs_in_the_other_one(
    request, tmp_path, pair, sampler, database
):
    storage = request.getfixturevalue("postgres_url") if database == "postgres" else None
    options = {"sampler": sampler, "n_trials": 8, "storage": storage}
    killed, survivor = Worker("killed"), pair[0]
    (tmp_path / "hangkilled").touch()
    killed.begin(tmp_path, **options)
    wait_for(lambda: (tmp_path / "startedkilled").exists())
    survivor.begin(tmp_path, **options)
    complete = 5 if sampler == "cma" else 7  # the rest of the generation, or of the study

    def list_states():
        return sorted(trial.state for trial in make_manager(tmp_path, **options).trials)

    wait_for(lambda: list_states() == ["complete"] * complete + ["running"])
    killed.kill()
    assert survivor.wait()["own"][complete] == 0  # the trial of the killed process
    assert list_states() == ["complete"] * 8
    pair[1].begin(tmp_path, **options)
    late = pair[1].wait()
    assert late["own"] == []
    assert late["value"] == min(
        trial.objective for trial in make_manager(tmp_path, **options).trials
    )
