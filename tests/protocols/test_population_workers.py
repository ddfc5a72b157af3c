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
from synaptune.search.trial import PARENT, SLICE, SLICES, Trial
from synaptune.search.workers.base import InlineWorkers, NeverStop
from synaptune.search.workers.pool import Pool
from synaptune.search.workers.population import PopulationWorkers
from synaptune.search.workers.process import KEY_VARIABLE
from synaptune.search.workers.spawners import LocalWorker
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.population_fit import fit_population

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


def search(folder, workers, engine, *, stopper=None, said=None):
    """Run a search to its end; return its trials and their reports."""
    location = StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto")
    with Study(location, {"a": 1}) as study:
        ledger = PhaseLedger(study, SPACE, "search", {"seed": 3, "test": False})
        try:
            search = Search(
                SPACE,
                engine,
                Plan(engine.budget),
                ledger,
                StateFile(folder / "optimizer.pkl", engine, SPACE.describe()),
                stopper=stopper or NeverStop(),
                on_message=[].append if said is None else said.append,
            )
            trials = run_searches([search], workers)[0]
        finally:
            workers.close()
        return trials, [ledger.read_intermediate_values(trial) for trial in trials]


def test_a_generation_in_two_processes_has_the_results_of_single_runs_although_one_is_killed(
    tmp_path,
):
    base = compose_config(SMALL, study="s").base
    single = TrainingEvaluation(base, "s", tmp_path / "trials")
    spawner, said = ForkedSpawner(tmp_path), []
    workers = Pool(PopulationEvaluation(single), spawner, COUNT, processes=2)
    engine = Engine("random", 7, budget=COUNT, workers=COUNT)
    trials, reports = search(tmp_path, workers, engine, stopper=Disturbance(spawner), said=said)
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


@pytest.mark.slow
def test_the_slices_of_population_based_training_train_together(tmp_path, monkeypatch):
    sizes = []

    def train(jobs, starts):
        sizes.append(len(jobs))
        return fit_population(jobs, starts)

    monkeypatch.setattr("synaptune.training.population_fit.fit_population", train)
    base = compose_config(SMALL, study="s").base
    engine = Engine("pbt", 7, budget=8, slices=2)
    found = []
    for name, make in (
        ("together", lambda single: PopulationWorkers(PopulationEvaluation(single), 4)),
        ("alone", InlineWorkers),
    ):
        single = TrainingEvaluation(base, "s", tmp_path / name / "trials")
        found.append(search(tmp_path / name, make(single), engine)[0])
    assert sizes == [4, 4]
    assert len({trial.facts[PARENT] for trial in found[0][4:]}) == 3  # one continues a copy
    for trial, expected in zip(*found, strict=True):
        assert (trial.unit, trial.facts[PARENT]) == (expected.unit, expected.facts[PARENT])
        assert trial.objective == pytest.approx(expected.objective, abs=TOLERANCE)


def test_a_slice_whose_checkpoint_is_missing_fails_alone(tmp_path):
    base = compose_config(SMALL, study="s").base
    evaluation = PopulationEvaluation(TrainingEvaluation(base, "s", tmp_path))
    facts = {"seed": 3, "test": False, "generation": 0, "phase": "search", SLICES: 2}
    trials = [
        Trial(number, number, (), {}, facts=facts | {SLICE: part, PARENT: parent})
        for number, part, parent in ((0, 0, None), (1, 1, 99), (2, 0, None))
    ]
    ended = {entry.trial.number: entry.result for entry in evaluation(trials, lambda *_: False)}
    assert "no checkpoint at" in ended[1].failure.reason
    assert ended[0].objective is not None
    assert ended[0].objective == ended[2].objective
