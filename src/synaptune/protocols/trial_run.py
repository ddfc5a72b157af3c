"""A trial of a protocol as training runs: made, or copied from a run that the study already has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.config.run import Outcome
from synaptune.search.objective.common_seeds import average_seeds, list_common_seeds
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import FinishedTrial, OnReport, Workers
from synaptune.study.artifacts import read_run_facts
from synaptune.training.loggers.wandb_run import make_run_labels

# What a trial is called in the study; everything else that is known of it came out of its run.
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


class ReusingWorkers:
    """Workers that copy a run the study has already made instead of making it again; key: what a trial's run depends on."""

    def __init__(
        self, workers: Workers, finished: Mapping[Any, Trial], key: Callable[[Trial], Any]
    ) -> None:
        self.count = workers.count
        self._workers, self._finished, self._key = workers, finished, key
        self._copies: list[FinishedTrial] = []

    def start(self, trial: Trial) -> None:
        """Begin a trial, or copy it."""
        twin = self._finished.get(self._key(trial))
        if twin is None:
            self._workers.start(trial)
            return
        facts = {name: value for name, value in twin.facts.items() if name not in _IDENTITY_FACTS}
        self._copies.append(
            FinishedTrial(
                trial, Result(twin.objective, 0.0, facts=facts | {"copied_from": twin.number})
            )
        )

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """The copies, else what ends next."""
        copies, self._copies = self._copies, []
        return copies or self._workers.wait_for_trials(on_report)

    def close(self) -> None:
        """The workers belong to the protocol."""


@dataclass(frozen=True)
class TrainingEvaluation:
    """The evaluation of a trial: its training runs, here or in a worker process.

    base: the resolved configuration; study: its name; folder: of the run folders; identity: of the study, see training/wandb_runs.py.
    """

    base: DictConfig
    study: str
    folder: Path
    identity: str = ""

    def __call__(self, trial: Trial) -> Result:
        began, seeds = (
            time.perf_counter(),
            list_common_seeds(trial.facts["seed"], trial.facts.get("seeds", 1)),
        )
        folder = self.folder / str(trial.number)
        outcomes = [
            self._train(trial, seed, folder if len(seeds) == 1 else folder / f"seed-{seed}")
            for seed in seeds
        ]
        seconds, first = time.perf_counter() - began, outcomes[0]
        facts = read_run_facts(first.run_dir).get("facts", {})
        if len(seeds) > 1:
            whole = average_seeds(
                [outcome.objective for outcome in outcomes if outcome.objective is not None],
                [outcome.metrics for outcome in outcomes],
            )
            return Result(whole.objective, seconds, whole.metrics, facts | whole.to_facts())
        if first.pruned_at is not None:
            return Result(
                None, seconds, first.metrics, facts, pruned=True, estimate=first.objective
            )
        return Result(first.objective, seconds, first.metrics, facts)

    def _train(self, trial: Trial, seed: int, folder: Path) -> Outcome:
        from synaptune.config.run import run
        from synaptune.config.schema import register

        register()  # a worker process knows none of the resolvers that the configuration refers to
        cfg = self.base.copy()
        called = make_run_labels(
            self.study,
            self.identity,
            f"{trial.number}-{seed}",
            facts=trial.facts,
            tags=cfg.logger.tags,
        )
        changes = trial.values | {"seed": seed, "training.test": trial.facts["test"]}
        changes |= {f"logger.{label}": content for label, content in called.items()}
        if trial.facts[
            "test"
        ]:  # what is claimed is the loss of a whole run, whatever the search went by
            changes |= {"objective.name": "val_loss", "pruner.name": "none"}
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return run(cfg, folder, overrides=[], generation=trial.facts["generation"])
