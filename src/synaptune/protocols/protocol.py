"""The runs of a protocol: each piece of work is one trial of the study, made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.protocols.trial_run import ReusingWorkers
from synaptune.search.loop import Plan
from synaptune.search.objective.score import ObjectiveConfig, get_score_kind
from synaptune.search.optimizers.registry import Engine
from synaptune.search.pruning import PrunerConfig
from synaptune.search.space.space import Space, Value
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.search.workers.base import Workers
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.reader import REFERENCE
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig


@dataclass(frozen=True)
class Protocol:
    """An open study with everything that the stages of a protocol need.

    Attributes:
        base: the resolved configuration of a run.
        space: dimensions of the (first) search.
        study: the open study.
        engine: optimizer of the search.
        plan: budget of the search.
        seeds: fresh seeds of the validation.
        device: name of the device, stored with every trial.
        code_version: of this package, stored with every trial.
        pool: workers that run the trials.
        stop: reasons to end a search before its budget.
        notifier: sends messages about the search.
        started_at: when the command started [s, monotonic].
    """

    base: DictConfig
    space: Space
    study: Study
    engine: Engine
    plan: Plan
    seeds: tuple[int, ...]
    device: str
    code_version: str
    pool: Workers
    stop: StopConfig
    notifier: Notifier
    started_at: float = field(default_factory=time.monotonic)

    @property
    def seed(self) -> int:
        """The seed of every run but the validation's."""
        return int(self.base.seed)

    @property
    def objective(self) -> ObjectiveConfig:
        """What the search minimises."""
        config = OmegaConf.to_object(self.base.objective)
        assert isinstance(config, ObjectiveConfig)
        return config

    def make_reusing_workers(self) -> Workers:
        """The pool, copying what the study already holds."""
        return ReusingWorkers(self.pool, find_finished_runs(self), self.make_trial_key)

    def make_trial_key(self, trial: Trial) -> tuple[Any, ...]:
        """What a trial's run depends on within the study; one of a part of the space has the configured values of the rest."""
        facts = trial.facts
        return self.make_run_key(
            trial.values,
            facts["seed"],
            facts.get("seeds", 1),
            test=facts["test"],
            generation=facts.get("generation", 0),
        )

    def make_run_key(
        self,
        values: Mapping[str, Value],
        seed: int,
        seeds: int = 1,
        *,
        test: bool,
        generation: int = 0,
    ) -> tuple[Any, ...]:
        """What a run of values and its objective depend on within the study, as `key`."""
        kind = "val_loss" if test else get_score_kind(self.objective, generation)
        return (
            tuple(sorted({**self._configured_values, **values}.items())),
            (seed, seeds),
            test,
            kind,
        )

    @cached_property
    def _configured_values(self) -> dict[str, Value]:
        return {name: OmegaConf.select(self.base, name) for name in self.space.names}

    @property
    def logger(self) -> LoggerConfig:
        """What is shown and logged."""
        config = OmegaConf.to_object(self.base.logger)
        assert isinstance(config, LoggerConfig)
        return config

    @property
    def pruner(self) -> PrunerConfig:
        """What may end a run of the search early."""
        config = OmegaConf.to_object(self.base.pruner)
        assert isinstance(config, PrunerConfig)
        return config

    def make_ledger(self, phase: str, space: Space | None = None, **facts: Any) -> PhaseLedger:
        """The trials of a phase (of a space: null is the protocol's), all but the validation's at the common seed."""
        about = {
            "seed": self.seed,
            "test": False,
            "code_version": self.code_version,
            "device": self.device,
        }
        return PhaseLedger(self.study, space or self.space, phase, about | facts)


def print_message(line: str) -> None:
    """A line of a protocol's account."""
    print(line, flush=True)


def _prefix_messages(label: str) -> Callable[[str], None]:
    """`say` for one of several searches."""
    return lambda line: print_message(f"{label}: {line}")


def find_finished_runs(protocol: Protocol) -> dict[Any, Trial]:
    """The study's complete runs, by what they depend on; the earliest of equals. The reference has an objective of its own: it is none."""
    complete = [
        trial
        for trial in protocol.study.read_trials()
        if trial.state == "complete" and trial.facts["phase"] != REFERENCE
    ]
    return {protocol.make_trial_key(trial): trial for trial in reversed(complete)}
