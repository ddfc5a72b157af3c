"""A generation that trains as several programs, one in each of two worker processes."""

import itertools
import os
import signal

import pytest

from helpers import processes
from synaptune.config.compose import compose_config
from synaptune.protocols.population import PopulationEvaluation
from synaptune.protocols.trial_run import TrainingEvaluation
from synaptune.search.loop import Search, run_searches
from synaptune.search.optimizers.registry import Engine
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.plan import Plan
from synaptune.search.space.space import Dimension, Space
from synaptune.search.workers.base import NeverStop
from synaptune.search.workers.pool import Pool
from synaptune.search.workers.process import KEY_VARIABLE
from synaptune.search.workers.spawners import LocalWorker
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(
    (
        Dimension("synapse.calcium.tau_c", "lin", 0.5, 0.99, start=0.85),
        Dimension("training.learning_rate", "log", 1e-3, 1e-2, start=3e-3),
    )
)
# fmt: off
SMALL = [
    "scale=smoke", "model.width=16", "training.steps=12", "training.evaluations=3", "logger=csv",
    "logger.progress=off", "data.recall_fraction=0.2",
]
# fmt: on
COUNT = 6
TOLERANCE = 2e-4  # of a loss [nats/token], as in training/test_population_fit.py


class ForkedWorker(LocalWorker):
    def kill(self):
        self.process.kill()
        self.process.wait()


class ForkedSpawner:
    """Starts worker processes that need not import the libraries again."""

    remote = False

    def __init__(self, folder):
        self.folder, self.workers = folder, {}

    def spawn(self, address, authkey, slot):
        words = ["-m", "synaptune.search.workers.process", str(slot), address]
        process = processes.start(words, self.folder, env={KEY_VARIABLE: authkey.hex()})
        self.workers[slot] = ForkedWorker(process)
        return self.workers[slot]

    def close(self):
        pass


class Disturbance(NeverStop):
    """Prunes trial 0 at the first validation; ends the first process at the second of trial 1."""

    def __init__(self, spawner):
        self.spawner, self.has_killed = spawner, False

    def __call__(self, trial, step, value):
        if (trial.index, step, self.has_killed) == (1, 8, False):
            self.has_killed = True
            os.kill(self.spawner.workers[0].process.pid, signal.SIGKILL)
        return (trial.index, step) == (0, 4)


def test_a_generation_in_two_processes_has_the_results_of_single_runs_although_one_is_killed(
    tmp_path,
):
    base = compose_config(SMALL, study="s").base
    single = TrainingEvaluation(base, "s", tmp_path / "trials")
    spawner = ForkedSpawner(tmp_path)
    workers = Pool(PopulationEvaluation(single), spawner, COUNT, processes=2)
    engine = Engine("random", 7, workers=COUNT)
    location = StudyLocation("s", tmp_path, f"sqlite:///{tmp_path}/study.db", "auto")
    said = []
    with Study(location, {"a": 1}) as study:
        ledger = PhaseLedger(study, SPACE, "search", {"seed": 3, "test": False})
        try:
            search = Search(
                SPACE,
                engine,
                Plan(COUNT),
                ledger,
                StateFile(tmp_path / "optimizer.pkl", engine, SPACE.describe()),
                stopper=Disturbance(spawner),
                on_message=said.append,
            )
            trials = run_searches([search], workers)[0]
        finally:
            workers.close()
        reports = [ledger.read_intermediate_values(trial) for trial in trials]
    assert [trial.state for trial in trials] == ["pruned", *["complete"] * (COUNT - 1)]
    assert [index for index, trial in enumerate(trials) if "attempts" in trial.facts] == [1, 2]
    assert sum("signal SIGKILL" in line for line in said) == 2
    alone = TrainingEvaluation(base, "s", tmp_path / "alone")
    for trial, values in zip(trials[1:], reports[1:], strict=True):
        assert sorted(values) == [4, 8, 12]
        assert trial.objective == pytest.approx(alone(trial).objective, abs=TOLERANCE)
    assert list(reports[0]) == [4]
    losses = sorted(trial.objective for trial in trials[1:])
    assert min(b - a for a, b in itertools.pairwise(losses)) > 2 * TOLERANCE
