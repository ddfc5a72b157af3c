"""The runs of a protocol: each piece of work is one trial of the study, made once, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.report.lines import TrialLines
from synaptune.search.loop import Plan, Result, Trial, stop_for_mistake
from synaptune.search.optimizers import Engine
from synaptune.search.space import Space, Unit
from synaptune.storage.study import PhaseLedger, Study

# What a trial is called in the study; everything else that is known of it came out of its run.
_GIVEN = ("phase", "generation", "config_fingerprint", "code_version", "device", "seed", "test", "copied_from")


@dataclass(frozen=True)
class Protocol:
    """What one command works on.

    base: the resolved configuration; seeds: fresh ones of the validation; go_on: search even when sanity fails; device, code: facts
    stored with every trial.
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

    @property
    def seed(self) -> int:
        """The seed of every run but the validation's."""
        return int(self.base.seed)

    def ledger(self, phase: str) -> PhaseLedger:
        """The trials of a phase, all but the validation's at the common seed."""
        return PhaseLedger(
            self.study, self.space, phase, {"seed": self.seed, "test": False, "code_version": self.code, "device": self.device}
        )


def measured(protocol: Protocol, ledger: PhaseLedger, points: Sequence[tuple[Unit, int]], *, label: str, test: bool = False) -> list[Trial]:
    """The trials of points (unit, seed) in a phase, run where they are not finished yet."""
    known = {_key(trial): trial for trial in ledger.trials()}
    lines, twins = TrialLines(len(points), label), twins_of(protocol)
    done = []
    for unit, seed in points:
        values = protocol.space.values(unit)
        trial = known.get((tuple(values.items()), seed, test))
        if trial is None:
            trial = ledger.start(len(known), unit, values, seed=seed, test=test)
        if trial.state == "running":
            (result,) = launch(protocol, [trial], twins)
            stop_for_mistake(result)
            trial = ledger.finish(trial, result)
            lines(trial, len(done) + 1)
        known[_key(trial)] = trial
        done.append(trial)
    return done


def launch(protocol: Protocol, batch: Sequence[Trial], twins: Mapping[Any, Trial]) -> Iterator[Result]:
    """Run trials here, one after another; one that has a twin in the study is copied instead."""
    for trial in batch:
        twin = twins.get(_key(trial))
        if twin is not None:
            facts = {name: value for name, value in twin.facts.items() if name not in _GIVEN}
            yield Result(twin.objective, 0.0, facts=facts | {"copied_from": twin.number})
        else:
            yield _execute(protocol, trial)


def twins_of(protocol: Protocol) -> dict[Any, Trial]:
    """The study's complete runs, by what they depend on; the earliest of equals."""
    complete = [trial for trial in protocol.study.trials() if trial.state == "complete"]
    return {_key(trial): trial for trial in reversed(complete)}


def _execute(protocol: Protocol, trial: Trial) -> Result:
    """One run in this process."""
    from synaptune.build import run
    from synaptune.storage.export import described

    name = protocol.study.place.name
    folder = protocol.study.place.trials / str(trial.number)
    cfg = protocol.base.copy()
    labels = {"group": name, "job_type": trial.facts["phase"], "run_id": f"{name}-{trial.number}"}
    changes = trial.values | {"seed": trial.facts["seed"], "training.test": trial.facts["test"]}
    for key, value in (changes | {f"logger.{label}": text for label, text in labels.items()}).items():
        OmegaConf.update(cfg, key, value)
    began = time.perf_counter()
    try:
        outcome = run(cfg, folder, overrides=[])
    except Exception as error:  # the border of a trial: whatever it raises is its own failure, kept with its traceback
        return Result(None, time.perf_counter() - began, error=error)
    about = described(folder)
    return Result(outcome.objective, time.perf_counter() - began, outcome.metrics, about.get("facts", {}))


def _key(trial: Trial) -> tuple[Any, int, bool]:
    """What a run depends on within a study."""
    return tuple(trial.values.items()), trial.facts["seed"], trial.facts["test"]
