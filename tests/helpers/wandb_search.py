"""A search with W&B, for tests that kill it.

    python wandb_search.py FOLDER STUDY GENERATIONS HOW        (HOW: kill, end, report or together)

Each generation has four trials; those of the first generation have W&B runs of their own. The
program continues the study, and reports every generation again. All losses are worse than that of
trial 0, and trial 2 fails. `together` instead runs two real searches side by side.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from synaptune.report.wandb_results import attach_results
from synaptune.search.optimizers.base import Engine
from synaptune.search.optimizers.diagnostics import diagnose
from synaptune.search.plan import Plan
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers
from synaptune.study.callbacks.base import PhaseTrials, open_callbacks
from synaptune.study.callbacks.wandb_search import WandbCallback, open_search_run
from synaptune.study.location import StudyLocation
from synaptune.study.optimize import PhaseSearch, optimize
from synaptune.study.reader import read_study
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import get_study_identity, make_run_labels, open_run

SIZE = 4
SPACE = Space(
    (
        Dimension("synapse.a.x", "lin", 0.0, 1.0, start=0.5),
        Dimension("synapse.b.y", "log", 0.1, 1.0, start=0.5),
    )
)
COVARIANCE = np.array([[0.04, 0.01], [0.01, 0.03]])


def main(folder: Path, name: str, generations: int, how: str) -> None:
    if how == "together":
        run_together(folder, name)
        return
    with Study(
        StudyLocation(name, folder, f"sqlite:///{folder}/study.db", "auto"), {"seed": 0}
    ) as study:
        (controller,) = open_search_run(
            LoggerConfig(tags=("mine",)),
            study,
            names={"search": SPACE.names},
            flat_config=study.configuration,
        )
        assert controller is not None
        continue_search(study, controller, generations)
        if how == "kill":
            deadline = time.monotonic() + 120
            while len(
                (folder / "controller/logged.jsonl").read_text().splitlines()
            ) < 1 + generations * (SIZE + 1):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        controller.close(0)
    if how == "report":
        for path, text in (("report/report.html", "<p>found</p>"), ("best.yaml", "parameters: {}")):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        (folder / "trials/0/checkpoint.pt").write_bytes(b"weights")
        snapshot = read_study(f"sqlite:///{folder}/study.db", name)
        assert attach_results(snapshot, folder, folder / "report")


def run_together(folder: Path, name: str) -> None:
    with Study(
        StudyLocation(name, folder, f"sqlite:///{folder}/study.db", "auto"), {"seed": 0}
    ) as study:
        ledgers = [
            PhaseLedger(study, Space((axis,)), phase, {"seed": 0})
            for axis, phase in zip(SPACE.dimensions, "ab", strict=True)
        ]
        jobs = [
            PhaseSearch(ledger, Engine("cma", 0), Plan(12), on_message=lambda line: None)
            for ledger in ledgers
        ]
        workers = InlineWorkers(lambda trial: Result(1.0 + sum(trial.values.values()), 0.01))
        with open_callbacks(
            [PhaseTrials(ledger, 12) for ledger in ledgers],
            LoggerConfig(progress="off", tensorboard=False),
        ) as callbacks:
            optimize(jobs, workers, callbacks)


def continue_search(study: Study, controller: WandbCallback, generations: int) -> None:
    ledger = PhaseLedger(study, SPACE, "search", {"seed": 0, "test": False})
    trials = ledger.read_trials()
    for generation in range(generations):
        for index in range(generation * SIZE, (generation + 1) * SIZE):
            if index < len(trials):
                continue
            unit = (index * 7 % 11 / 11, index * 5 % 13 / 13)
            trial = ledger.start(index, unit, SPACE.to_values(unit), generation)
            controller.on_start(trial)
            if generation == 0:
                log_run(study, trial)
            result = (
                Result(None, 1.0)
                if index == 2
                else Result(2.0 + 0.1 * index, 1.0, {"val_loss": 2.0 + 0.1 * index})
            )
            trials.append(ledger.finish(trial, result))
            controller.on_end(trials[-1], index + 1)
        mean = np.array([0.5, 0.4])
        diagnostics = diagnose(
            generation=generation + 1,
            names=SPACE.names,
            mean=mean,
            step=0.2,
            covariance=COVARIANCE,
            stagnation=0,
        )
        controller.on_generation(diagnostics, trials[generation * SIZE : (generation + 1) * SIZE])


def log_run(study: Study, trial: Trial) -> None:
    folder = study.location.trials_folder / str(trial.number)
    folder.mkdir(parents=True)
    labels = make_run_labels(
        study.location.name,
        get_study_identity(study),
        trial.number,
        facts=trial.facts,
        searched=trial.values,
    )
    lists = {name: tuple(labels[name]) for name in ("tags", "searched")}
    writer = open_run(
        LoggerConfig(**labels | lists),
        folder,
        name="trial",
        flat_config=trial.values,
    )
    assert writer is not None
    writer.log(1, {"val_loss": 2.0 + 0.1 * trial.index})
    writer.close(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
