"""The runs of a protocol: each piece of work is one trial of the study, made once."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.core.errors import mistake
from synaptune.core.parameters import constant
from synaptune.protocols.trial_run import TrainingRun, WithTwins
from synaptune.search.loop import Plan
from synaptune.search.objective.score import ObjectiveConfig, kind_at, needs_baseline, rescored, with_baseline
from synaptune.search.optimizers.base import Told
from synaptune.search.optimizers.registry import Engine
from synaptune.search.pruning import PrunerConfig, make_pruner
from synaptune.search.runner import Account, check_interrupted, run_all
from synaptune.search.space.space import Space, Unit, Value
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial, best_of
from synaptune.search.workers.base import Inline, Workers
from synaptune.study.callbacks.base import Overheard, Show, opened, opened_together
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.optimize import Company, Job, Steering, conduct
from synaptune.study.reader import REFERENCE
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import identity

CONFIRMING_SEEDS = int(
    constant("protocol.confirming_seeds", 3, unit="seed", meaning="further seeds of incumbents", source="chosen: a mean of three")
)


@dataclass(frozen=True)
class Protocol:
    """What one command works on.

    base: the resolved configuration; seeds: fresh ones of the validation; go_on: search even when sanity fails; device, code: facts
    stored with every trial; pool: where the runs are made; stop: reasons to end a search before its budget; notifier: tells
    others of what happens; began: when the command did [s, monotonic].
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
    stop: StopConfig
    notifier: Notifier
    began: float = field(default_factory=time.monotonic)

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

    def workers(self) -> Workers:
        """The pool, copying what the study already holds."""
        return WithTwins(self.pool, twins_of(self), self.key)

    def key(self, trial: Trial) -> tuple[Any, ...]:
        """What a trial's run depends on within the study; one of a part of the space has the configured values of the rest."""
        facts = trial.facts
        return self.key_of(trial.values, facts["seed"], facts.get("seeds", 1), test=facts["test"], generation=facts.get("generation", 0))

    def key_of(self, values: Mapping[str, Value], seed: int, seeds: int = 1, *, test: bool, generation: int = 0) -> tuple[Any, ...]:
        """What a run of values and its objective depend on within the study, as `key`."""
        kind = "val_loss" if test else kind_at(self.objective, generation)
        return tuple(sorted({**self._configured, **values}.items())), (seed, seeds), test, kind

    @cached_property
    def _configured(self) -> dict[str, Value]:
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

    def ledger(self, phase: str, space: Space | None = None, **facts: Any) -> PhaseLedger:
        """The trials of a phase (of a space: null is the protocol's), all but the validation's at the common seed."""
        about = {"seed": self.seed, "test": False, "code_version": self.code, "device": self.device}
        return PhaseLedger(self.study, space or self.space, phase, about | facts)


def with_reference(protocol: Protocol) -> DictConfig:
    """The configuration with the baseline that its objective divides by, measured at the defaults where it is not given."""
    if not needs_baseline(protocol.objective):
        return protocol.base
    plain = protocol.base.copy()
    plain.objective.name, plain.pruner.name = "val_loss", "none"
    place = protocol.study.place
    here = replace(protocol, base=plain, pool=Inline(TrainingRun(plain, place.name, place.trials, identity(protocol.study))))
    (trial,) = measured(here, here.ledger(REFERENCE), [(protocol.space.start(), protocol.seed)], label="reference run")
    objective_at_start(trial)
    base = protocol.base.copy()
    base.objective.baseline = OmegaConf.structured(with_baseline(protocol.objective, trial.facts).baseline)
    return base


def best_trial(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """The best of a search's trials; under an objective that changes on the way, all ranked by what it is at the end."""
    config, last = protocol.objective, max((trial.facts["generation"] for trial in trials), default=0)
    if config.name != "hybrid":
        return best_of(trials)
    scores = rescored(config, [trial.facts if trial.state == "complete" else None for trial in trials], last)
    return best_of([replace(trial, objective=score) for trial, score in zip(trials, scores, strict=True)])


def measured(protocol: Protocol, ledger: PhaseLedger, points: Sequence[tuple[Unit, int]], *, label: str, test: bool = False) -> list[Trial]:
    """The trials of points (unit, seed) in a phase, run where they are not finished yet."""
    known = {protocol.key(trial): trial for trial in ledger.trials()}
    generation = ledger.facts.get("generation", 0)
    keys = [protocol.key_of(ledger.space.values(unit), seed, test=test, generation=generation) for unit, seed in points]

    def to_run() -> Iterator[Trial]:
        for (unit, seed), key in zip(points, keys, strict=True):
            if key not in known:
                known[key] = ledger.start(len(known), unit, ledger.space.values(unit), seed=seed, test=test)
                yield known[key]
            elif known[key].state == "running" and key not in begun:
                yield known[key]
            begun.add(key)

    begun: set[Any] = set()
    done = [known[key] for key in keys if key in known and known[key].state != "running"]
    if len(done) == len(points):
        return [known[key] for key in keys]
    with opened(ledger, protocol.logger, Show(len(points), label, earlier=done, stop=protocol.stop, logs=False)) as listeners:
        heard = Overheard(listeners)
        account = Account(ledger, protocol.plan.retries, heard, listeners.started, say)
        for number, trial in enumerate(run_all(to_run(), protocol.workers(), account), len(done) + 1):
            listeners.ended(trial, number)
            known[protocol.key(trial)] = trial
    return [known[key] for key in keys]


def searched(protocol: Protocol, ledger: PhaseLedger, plan: Plan, *, label: str = "search", prior: Sequence[Told] = ()) -> list[Trial]:
    """The trials of a phase's search, brought to the plan's budget."""
    return searched_together(protocol, {label: ledger}, plan, prior=prior)[label]


def searched_together(
    protocol: Protocol, ledgers: Mapping[str, PhaseLedger], plan: Plan, *, prior: Sequence[Told] = ()
) -> dict[str, list[Trial]]:
    """The trials of the searches of several phases, each brought to the plan's budget, side by side on the protocol's workers.

    ledgers: by the name that people read.
    """
    budget, trials = plan.budget, {label: ledger.trials() for label, ledger in ledgers.items()}
    assert budget is not None
    ended = {label: [trial for trial in found if trial.state != "running"] for label, found in trials.items()}
    left = [label for label, found in trials.items() if len(ended[label]) < max(budget, len(found))]
    for label in left:
        say(f"{label}: {budget} evaluations" + (f", {len(ended[label])} of them done before" if ended[label] else ""))
    shows = [(ledgers[label], Show(budget, "evaluation", earlier=ended[label], stop=protocol.stop)) for label in left]
    if left:
        with opened_together(shows, protocol.logger) as listeners:
            jobs = []
            for label, heard in zip(left, listeners, strict=True):
                company = Company(heard, protocol.notifier, say=say if len(ledgers) == 1 else _saying(label))
                jobs.append(Job(ledgers[label], protocol.engine, plan, _steering(protocol, prior), company))
            trials |= dict(zip(left, conduct(jobs, protocol.workers()), strict=True))
        check_interrupted()
    for label, found in trials.items():
        if (best := best_trial(protocol, found)) is not None:
            say(f"{label}: best objective {best.objective:.4f} in trial {best.number}")
    return trials


def _steering(protocol: Protocol, prior: Sequence[Told]) -> Steering:
    training = protocol.base.training
    pruner = make_pruner(protocol.pruner, steps=training.steps, evaluations=training.evaluations, seed=protocol.engine.seed)
    return Steering(pruner, prior, protocol.stop, protocol.began)


def confirmed(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """The best of a search's trials; with `search.incumbents`, the one of so many whose mean over further seeds is best.

    The best of many noisy evaluations is partly the luckiest: its own value is too good, and another point may be better.
    """
    count, best = int(protocol.base.search.incumbents), best_trial(protocol, trials)
    if count < 2 or best is None:
        return best
    rest, chosen = [trial for trial in trials if trial.objective is not None], [best]
    while len(chosen) < count and (rest := [trial for trial in rest if trial.unit not in {entry.unit for entry in chosen}]):
        following = best_trial(protocol, rest)
        assert following is not None
        chosen.append(following)
    seeds = [protocol.seed + int(protocol.base.search.seeds) + number for number in range(CONFIRMING_SEEDS)]
    say(f"incumbents: {len(chosen)} points on {len(seeds)} more seeds")
    ledger = protocol.ledger("incumbents", generation=max(trial.facts["generation"] for trial in trials))
    runs = measured(protocol, ledger, [(trial.unit, seed) for trial in chosen for seed in seeds], label="incumbent run")
    means = [_mean(runs[index * len(seeds) : (index + 1) * len(seeds)]) for index in range(len(chosen))]
    winner, mean = min(zip(chosen, means, strict=True), key=lambda pair: pair[1])
    say(f"incumbents: trial {winner.number} has the best mean, {mean:.4f} (the search's best, trial {best.number}: {means[0]:.4f})")
    return winner


def _mean(runs: Sequence[Trial]) -> float:
    """The mean objective of runs; infinite when one of them failed."""
    objectives = [run.objective for run in runs if run.objective is not None]
    return statistics.fmean(objectives) if len(objectives) == len(runs) else math.inf


def validated(protocol: Protocol, before: Unit, after: Unit) -> list[tuple[Trial, Trial]]:
    """Two points on each fresh seed, test split included; pairs with a failed run are left out, and said."""
    say(f"validation: start and best on {len(protocol.seeds)} fresh seeds, test split")
    points = [(unit, seed) for seed in protocol.seeds for unit in (before, after)]
    return paired(measured(protocol, protocol.ledger("validation"), points, label="validation run", test=True))


def paired(runs: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Runs that alternate between two points, as pairs; raises UserError for fewer than two whole ones."""
    pairs = [(runs[index], runs[index + 1]) for index in range(0, len(runs), 2)]
    whole = [pair for pair in pairs if all(trial.state == "complete" for trial in pair)]
    for trial in (trial for pair in pairs for trial in pair if trial.state == "failed"):
        say(f"the run with seed {trial.facts['seed']} failed and its pair is left out ({trial.reason})")
    if len(whole) < 2:
        raise mistake(got=f"{len(whole)} whole pairs of validation runs", expected="at least 2", do="see the reasons above")
    return whole


def objective_at_start(trial: Trial) -> float:
    """The objective of a run where a search begins; raises UserError when it failed."""
    if trial.objective is None:
        raise mistake(
            got=f"a failed run where the search begins (trial {trial.number}): {trial.reason}",
            expected="values that train",
            do="mend the configuration and give the study another name",
        )
    return trial.objective


def say(line: str) -> None:
    """A line of a protocol's account."""
    print(line, flush=True)


def _saying(label: str) -> Callable[[str], None]:
    """`say` for one of several searches."""
    return lambda line: say(f"{label}: {line}")


def twins_of(protocol: Protocol) -> dict[Any, Trial]:
    """The study's complete runs, by what they depend on; the earliest of equals. The reference has an objective of its own: it is none."""
    complete = [trial for trial in protocol.study.trials() if trial.state == "complete" and trial.facts["phase"] != REFERENCE]
    return {protocol.key(trial): trial for trial in reversed(complete)}
