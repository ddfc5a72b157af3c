"""A trial as training runs: made here or in a worker, or copied from a run of the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from synaptune.search.objective.common_seeds import average_seeds, list_common_seeds
from synaptune.search.trial import PARENT, SLICE, SLICES, Result, Trial
from synaptune.search.workers.base import FinishedTrial, OnReport, Workers
from synaptune.study.artifacts import read_run_facts
from synaptune.study.database.keys import RUN_EVALUATIONS, RUN_STEPS
from synaptune.training.config import CHECKPOINT_FILE
from synaptune.training.loggers.wandb_run import make_run_labels

# Facts that change the length of a run, and the settings that they replace.
_RUN_LENGTHS = {RUN_STEPS: "training.steps", RUN_EVALUATIONS: "training.evaluations"}
# Facts of a trial itself; every other fact belongs to its run.
_IDENTITY_FACTS = (
    "phase",
    "generation",
    "config_fingerprint",
    "code_version",
    "device",
    "seed",
    "test",
    "copied_from",
)


class TrialRun(NamedTuple):
    """One of the runs of a trial.

    Attributes:
        objective: None when it is unknown; of a pruned run the one it was heading for.
        metrics: numbers by name.
        is_pruned: whether the run ended early.
    """

    objective: float | None
    metrics: Mapping[str, float]
    is_pruned: bool = False


def make_slice_changes(trial: Trial, folder: Path, steps: int) -> dict[str, Any]:
    """Return the settings of a trial that trains a slice of a run; empty for a whole run.

    Args:
        trial: the trial.
        folder: folder of the run folders.
        steps: steps of a whole run.
    """
    if SLICE not in trial.facts:
        return {}
    part = (trial.facts[SLICE] + 1) / trial.facts[SLICES]
    changes: dict[str, Any] = {"training.last_step": round(part * steps)}
    if (parent := trial.facts[PARENT]) is not None:
        changes["training.start"] = str(folder.absolute() / str(parent) / CHECKPOINT_FILE)
    return changes


def combine_runs(runs: Sequence[TrialRun], seconds: float, facts: Mapping[str, Any]) -> Result:
    """Return the result of a trial: its run, or the mean over its runs on several seeds.

    Args:
        runs: one for each seed.
        seconds: wall time of all.
        facts: of the first run.
    """
    first, metrics = runs[0], dict(runs[0].metrics)
    if len(runs) > 1:
        objectives = [run.objective for run in runs if run.objective is not None]
        average = average_seeds(objectives, [run.metrics for run in runs])
        facts = {**facts, **average.to_facts()}
        return Result(average.objective, seconds, average.metrics, facts)
    if first.is_pruned:
        return Result(None, seconds, metrics, dict(facts), pruned=True, estimate=first.objective)
    return Result(first.objective, seconds, metrics, dict(facts))


class ReusingWorkers:
    """Workers that copy a run that the study already has instead of repeating it."""

    def __init__(
        self, workers: Workers, finished: Mapping[Any, Trial], key: Callable[[Trial], Any]
    ) -> None:
        """Wrap workers.

        Args:
            workers: make the runs that are not copied.
            finished: complete trials by their key.
            key: returns everything that the run of a trial depends on.
        """
        self.count = workers.count
        self._workers, self._finished, self._key = workers, finished, key
        self._copies: list[FinishedTrial] = []

    def start(self, trial: Trial) -> None:
        """Start a trial, or copy it."""
        source = self._finished.get(self._key(trial))
        if source is None:
            self._workers.start(trial)
            return
        facts = {name: value for name, value in source.facts.items() if name not in _IDENTITY_FACTS}
        result = Result(source.objective, 0.0, facts=facts | {"copied_from": source.number})
        self._copies.append(FinishedTrial(trial, result))

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Return the copies, else the trials that end next."""
        copies, self._copies = self._copies, []
        return copies or self._workers.wait_for_trials(on_report)

    def close(self) -> None:
        """Do nothing: the workers belong to the protocol."""


@dataclass(frozen=True)
class TrainingEvaluation:
    """The evaluation of a trial of a protocol: its training runs, here or in a worker process.

    Attributes:
        base: the resolved configuration.
        study: name of the study.
        folder: folder of the run folders.
        identity: of the study, see training/loggers/wandb_run.py.
    """

    base: DictConfig
    study: str
    folder: Path
    identity: str = ""

    def __call__(self, trial: Trial) -> Result:
        started_at = time.perf_counter()
        places = self.list_runs(trial)
        runs = [self._train(trial, *place) for place in places]
        facts = read_run_facts(places[0][1]).get("facts", {})
        return combine_runs(runs, time.perf_counter() - started_at, facts)

    def list_runs(self, trial: Trial) -> list[tuple[int, Path]]:
        """Return seed and folder of each run of a trial."""
        seeds = list_common_seeds(trial.facts["seed"], trial.facts.get("seeds", 1))
        folder = self.folder / str(trial.number)
        folders = [folder] if len(seeds) == 1 else [folder / f"seed-{seed}" for seed in seeds]
        return list(zip(seeds, folders, strict=True))

    def _train(self, trial: Trial, seed: int, folder: Path) -> TrialRun:
        from synaptune.config.run import run

        cfg = self.compose(trial, seed, folder)
        outcome = run(cfg, folder, overrides=[], generation=trial.facts["generation"])
        return TrialRun(outcome.objective, outcome.metrics, outcome.pruned_at is not None)

    def compose(self, trial: Trial, seed: int, folder: Path) -> DictConfig:
        """Return the configuration of a run of a trial in a folder."""
        from synaptune.config.schema import register

        register()  # a worker process has none of the resolvers that the configuration refers to
        cfg = self.base.copy()
        labels = make_run_labels(
            self.study,
            self.identity,
            # One run is named after its trial, several after their folders (`seed-1`).
            "-".join(dict.fromkeys([str(trial.number), folder.name])),
            facts=trial.facts,
            searched=trial.values,
            tags=cfg.logger.tags,
        )
        changes = trial.values | {"seed": seed, "training.test": trial.facts["test"]}
        changes |= make_slice_changes(trial, self.folder, cfg.training.steps)
        for fact, key in _RUN_LENGTHS.items():
            if (number := trial.facts.get(fact)) is not None:
                changes[key] = number
        changes |= {f"logger.{key}": value for key, value in labels.items()}
        if trial.facts["test"]:  # the claim is about the loss of a whole run, under any objective
            changes |= {"objective.name": "val_loss", "pruner.name": "none"}
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return cfg
