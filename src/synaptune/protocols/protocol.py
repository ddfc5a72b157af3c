"""An open study with what the stages of a protocol need; every run is a trial, made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from synaptune.config.flat import get_typed_group, read_group, select_value
from synaptune.core.terminal import print_line
from synaptune.protocols.trial_run import ReusingWorkers
from synaptune.search.config import SearchConfig
from synaptune.search.objective.score import ObjectiveConfig, get_score_kind
from synaptune.search.optimizers.registry import Engine
from synaptune.search.plan import Plan
from synaptune.search.pruning import PrunerConfig
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value, make_key
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import PARENT, SLICE, Trial
from synaptune.search.workers.base import Workers
from synaptune.study.callbacks.base import TERMINAL_ONLY
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.database import keys as schema
from synaptune.study.reader import REFERENCE, SCREEN
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig, TrainingConfig, parse_keep

ConfigT = TypeVar("ConfigT")
_FINAL_STEPS = "search.final_steps"  # of the configuration of a study: steps of its validation


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
        device: name of the device, stored with every trial; None stores none.
        code_version: of this package, stored with every trial.
        pool: workers that run the trials.
        stop: reasons to end a search before its budget.
        notifier: sends messages about the search.
        started_at: when the command started [s, monotonic].
        full_space: all parameters of the study, where the search varies a part of them.
        reuses_runs: whether a run that the study already has is copied, not repeated.
    """

    base: DictConfig
    space: Space
    study: Study
    engine: Engine
    plan: Plan
    seeds: tuple[int, ...]
    device: str | None
    code_version: str
    pool: Workers
    stop: StopConfig
    notifier: Notifier
    started_at: float = field(default_factory=time.monotonic)
    full_space: Space | None = None
    reuses_runs: bool = True

    @property
    def seed(self) -> int:
        """Seed of every run but those of the validation."""
        return int(self.base.seed)

    @property
    def final_steps(self) -> int | None:
        """Steps of the validation and of what is compared with it; None means training.steps."""
        return self.study.configuration.get(_FINAL_STEPS)

    @property
    def final_length(self) -> dict[str, Any]:
        """The fact of a run that has `final_steps`; empty without."""
        return {} if self.final_steps is None else {schema.RUN_STEPS: self.final_steps}

    @property
    def has_own_objective(self) -> bool:
        """Whether the application has our objectives."""
        return self._read_typed("objective", ObjectiveConfig) is not None

    @property
    def objective(self) -> ObjectiveConfig:
        """What the search minimises."""
        return self._read_typed("objective", ObjectiveConfig) or ObjectiveConfig()

    @property
    def logger(self) -> LoggerConfig:
        """What is shown and logged."""
        return self._read_typed("logger", LoggerConfig) or TERMINAL_ONLY

    @property
    def kept_checkpoints(self) -> int | None:
        """Number of best trials of each phase whose checkpoints are kept; None keeps all."""
        return read_kept_checkpoints(self.base)

    @property
    def pruner(self) -> PrunerConfig:
        """What may end a run of the search early."""
        return self._read_typed("pruner", PrunerConfig) or PrunerConfig()

    @property
    def search(self) -> SearchConfig:
        """Seeds and incumbents of the search."""
        return read_group(self.base, "search", SearchConfig)

    def _read_typed(self, group: str, kind: type[ConfigT]) -> ConfigT | None:
        """Return a group as its dataclass; None where the application has no such group."""
        node = get_typed_group(self.base, group, kind)
        config = None if node is None else OmegaConf.to_object(node)
        return config if isinstance(config, kind) else None

    def make_reusing_workers(self) -> Workers:
        """Return workers that copy the runs that the study already has."""
        if not self.reuses_runs:
            return self.pool
        return ReusingWorkers(self.pool, find_finished_runs(self), self.make_trial_key)

    def make_trial_key(self, trial: Trial) -> tuple[Any, ...]:
        """Return what the run of a trial depends on within the study.

        A trial of a part of the space has the configured values of the rest.
        """
        facts = trial.facts
        key = self.make_run_key(
            trial.values,
            facts["seed"],
            facts.get("seeds", 1),
            test=facts.get("test", False),
            generation=facts.get("generation", 0),
        )
        return (*key, facts[SLICE], facts[PARENT]) if SLICE in facts else key

    def make_run_key(
        self,
        values: Mapping[str, Value],
        seed: int,
        seeds: int = 1,
        *,
        test: bool,
        generation: int = 0,
    ) -> tuple[Any, ...]:
        """Return what a run of values, and its objective, depend on within the study."""
        kind = "val_loss" if test else get_score_kind(self.objective, generation)
        return (
            make_key({**self._configured_values, **values}),
            (seed, seeds),
            test,
            kind,
        )

    @cached_property
    def _configured_values(self) -> dict[str, Value]:
        return {
            name: select_value(self.base, name) for name in (self.full_space or self.space).names
        }

    def make_ledger(self, phase: str, space: Space | None = None, **facts: Any) -> PhaseLedger:
        """Return the ledger of a phase.

        Args:
            phase: its name in the study.
            space: dimensions of its trials; None means those of the protocol.
            **facts: stored with every trial.
        """
        seed = select_value(self.base, "seed")  # None for an application without one
        common = {
            "seed": seed if isinstance(seed, int) else None,
            "test": False,
            "code_version": self.code_version,
        }
        common |= {"device": self.device} if self.device is not None else {}
        return PhaseLedger(self.study, space or self.space, phase, common | facts)


def read_kept_checkpoints(base: DictConfig) -> int | None:
    """Return the number of `training.keep`; None for all, and for another application."""
    training = get_typed_group(base, "training", TrainingConfig)
    return None if training is None else parse_keep(training.keep)


def print_message(line: str) -> None:
    """Print a line about the progress of a protocol."""
    print_line(line)


def prefix_messages(label: str) -> Callable[[str], None]:
    """Return a `print_message` for one of several searches."""
    return lambda line: print_message(f"{label}: {line}")


def find_finished_runs(protocol: Protocol) -> dict[Any, Trial]:
    """Return the complete runs of a study by their key, the earliest of equals.

    The reference run has an objective of its own, and the runs of a screening may be shorter: they
    are left out, and so are imported trials.
    """
    complete = [
        trial
        for trial in protocol.study.read_trials()
        if trial.state == "complete"
        and trial.facts["phase"] not in (REFERENCE, SCREEN, schema.IMPORTED)
    ]
    return {protocol.make_trial_key(trial): trial for trial in reversed(complete)}
