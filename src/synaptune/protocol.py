"""The runs of a protocol: each piece of work is one trial of the study, made once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.notify import Notifier
from synaptune.report.lines import TrialLines
from synaptune.search.loop import Plan, Stop
from synaptune.search.optimizers import Engine
from synaptune.search.runner import Runner, run_all
from synaptune.search.space import Space, Unit
from synaptune.search.trial import Result, Trial
from synaptune.search.workers import Ended, Judge, Workers
from synaptune.storage.study import PhaseLedger, Study

# What a trial is called in the study; everything else that is known of it came out of its run.
_GIVEN = ("phase", "generation", "config_fingerprint", "code_version", "device", "seed", "test", "copied_from")


@dataclass(frozen=True)
class Protocol:
    """What one command works on.

    base: the resolved configuration; seeds: fresh ones of the validation; go_on: search even when sanity fails; device, code: facts
    stored with every trial; pool: where the runs are made; stop: ends the search, and only it, before its budget;
    notifier: hears of the search.
    """

    base: DictConfig
    space: Space
    study: Study
    engine: Engine
    plan: Plan
    seeds: tuple[int, ...]
    go_on: bool
    device: str
    code: str
    pool: Workers
    stop: Stop
    notifier: Notifier

    @property
    def seed(self) -> int:
        """The seed of every run but the validation's."""
        return int(self.base.seed)

    def workers(self) -> Workers:
        """The pool, copying what the study already holds."""
        return WithTwins(self.pool, twins_of(self))

    def ledger(self, phase: str) -> PhaseLedger:
        """The trials of a phase, all but the validation's at the common seed."""
        return PhaseLedger(
            self.study, self.space, phase, {"seed": self.seed, "test": False, "code_version": self.code, "device": self.device}
        )


def measured(protocol: Protocol, ledger: PhaseLedger, points: Sequence[tuple[Unit, int]], *, label: str, test: bool = False) -> list[Trial]:
    """The trials of points (unit, seed) in a phase, run where they are not finished yet."""
    known = {_key(trial): trial for trial in ledger.trials()}
    keys = [(tuple(protocol.space.values(unit).items()), seed, test) for unit, seed in points]

    def to_run() -> Iterator[Trial]:
        for (unit, seed), key in zip(points, keys, strict=True):
            if key not in known:
                known[key] = ledger.start(len(known), unit, protocol.space.values(unit), seed=seed, test=test)
                yield known[key]
            elif known[key].state == "running" and key not in begun:
                yield known[key]
            begun.add(key)

    begun: set[Any] = set()
    lines = TrialLines(len(points), label)
    runner = Runner(protocol.workers(), ledger, retries=protocol.plan.retries, say=print)
    before = sum(key in known and known[key].state != "running" for key in keys)
    for number, trial in enumerate(run_all(to_run(), runner), before + 1):
        lines(trial, number)
        known[_key(trial)] = trial
    return [known[key] for key in keys]


class WithTwins:
    """Workers that copy a run the study has already made instead of making it again."""

    def __init__(self, workers: Workers, twins: Mapping[Any, Trial]) -> None:
        self.count = workers.count
        self._workers, self._twins = workers, twins
        self._copies: list[Ended] = []

    def start(self, trial: Trial) -> None:
        """Begin a trial, or copy it."""
        twin = self._twins.get(_key(trial))
        if twin is None:
            self._workers.start(trial)
            return
        facts = {name: value for name, value in twin.facts.items() if name not in _GIVEN}
        self._copies.append(Ended(trial, Result(twin.objective, 0.0, facts=facts | {"copied_from": twin.number})))

    def ended(self, judge: Judge) -> Sequence[Ended]:
        """The copies, else what ends next."""
        copies, self._copies = self._copies, []
        return copies or self._workers.ended(judge)

    def close(self) -> None:
        """The workers belong to the protocol."""


def twins_of(protocol: Protocol) -> dict[Any, Trial]:
    """The study's complete runs, by what they depend on; the earliest of equals."""
    complete = [trial for trial in protocol.study.trials() if trial.state == "complete"]
    return {_key(trial): trial for trial in reversed(complete)}


@dataclass(frozen=True)
class TrainingRun:
    """The evaluation of a trial: one training run, here or in a worker process.

    base: the resolved configuration; study: its name; folder: of the run folders.
    """

    base: DictConfig
    study: str
    folder: Path

    def __call__(self, trial: Trial) -> Result:
        from synaptune.build import run
        from synaptune.storage.export import described

        cfg, folder = self.base.copy(), self.folder / str(trial.number)
        labels = {"group": self.study, "job_type": trial.facts["phase"], "run_id": f"{self.study}-{trial.number}"}
        changes = trial.values | {"seed": trial.facts["seed"], "training.test": trial.facts["test"]}
        for key, value in (changes | {f"logger.{label}": text for label, text in labels.items()}).items():
            OmegaConf.update(cfg, key, value)
        began = time.perf_counter()
        outcome = run(cfg, folder, overrides=[])
        return Result(outcome.objective, time.perf_counter() - began, outcome.metrics, described(folder).get("facts", {}))


def _key(trial: Trial) -> tuple[Any, int, bool]:
    """What a run depends on within a study."""
    return tuple(trial.values.items()), trial.facts["seed"], trial.facts["test"]
