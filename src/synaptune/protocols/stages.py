"""The stages that protocols share: runs of points, searches, incumbents, validation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.core.errors import mistake
from synaptune.core.parameters import constant
from synaptune.protocols.protocol import Protocol, _saying, say
from synaptune.protocols.trial_run import TrainingRun
from synaptune.search.loop import Plan
from synaptune.search.objective.score import needs_baseline, rescored, with_baseline
from synaptune.search.optimizers.base import Told
from synaptune.search.pruning import make_pruner
from synaptune.search.runner import Account, check_interrupted, run_all
from synaptune.search.space.space import Unit
from synaptune.search.trial import Trial, best_of
from synaptune.search.workers.base import Inline
from synaptune.study.callbacks.base import Overheard, Show, opened, opened_together
from synaptune.study.optimize import Company, Job, Steering, conduct
from synaptune.study.reader import REFERENCE
from synaptune.study.study import PhaseLedger
from synaptune.training.loggers.wandb_run import identity

CONFIRMING_SEEDS = int(
    constant("protocol.confirming_seeds", 3, unit="seed", meaning="further seeds of incumbents", source="chosen: a mean of three")
)


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
