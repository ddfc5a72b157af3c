"""The stages that protocols share: runs of points, searches, incumbents, validation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.core.errors import user_error
from synaptune.protocols.protocol import Protocol, _prefix_messages, print_message
from synaptune.protocols.trial_run import TrainingEvaluation
from synaptune.search.loop import Plan
from synaptune.search.objective.score import needs_baseline, rescore, with_baseline
from synaptune.search.optimizers.base import Observation
from synaptune.search.pruning import make_pruner
from synaptune.search.runner import TrialPolicy, check_interrupted, run_trials
from synaptune.search.space.space import UnitPoint
from synaptune.search.trial import Trial, find_best
from synaptune.search.workers.base import InlineWorkers
from synaptune.study.callbacks.base import Overheard, Show, open_callbacks, open_shared_callbacks
from synaptune.study.optimize import Company, PhaseSearch, SearchOptions, optimize
from synaptune.study.reader import REFERENCE
from synaptune.study.study import PhaseLedger
from synaptune.training.loggers.wandb_run import get_study_identity

INCUMBENT_SEEDS = 3  # further seeds of incumbents [seed]; chosen: a mean of three


def measure_reference(protocol: Protocol) -> DictConfig:
    """The configuration with the baseline that its objective divides by, measured at the defaults where it is not given."""
    if not needs_baseline(protocol.objective):
        return protocol.base
    plain = protocol.base.copy()
    plain.objective.name, plain.pruner.name = "val_loss", "none"
    place = protocol.study.location
    here = replace(
        protocol,
        base=plain,
        pool=InlineWorkers(
            TrainingEvaluation(
                plain, place.name, place.trials_folder, get_study_identity(protocol.study)
            )
        ),
    )
    (trial,) = run_points(
        here,
        here.make_ledger(REFERENCE),
        [(protocol.space.get_start(), protocol.seed)],
        label="reference run",
    )
    require_objective(trial)
    base = protocol.base.copy()
    base.objective.baseline = OmegaConf.structured(
        with_baseline(protocol.objective, trial.facts).baseline
    )
    return base


def find_best_trial(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """The best of a search's trials; under an objective that changes on the way, all ranked by what it is at the end."""
    config, last = (
        protocol.objective,
        max((trial.facts["generation"] for trial in trials), default=0),
    )
    if config.name != "hybrid":
        return find_best(trials)
    scores = rescore(
        config, [trial.facts if trial.state == "complete" else None for trial in trials], last
    )
    return find_best(
        [replace(trial, objective=score) for trial, score in zip(trials, scores, strict=True)]
    )


def run_points(
    protocol: Protocol,
    ledger: PhaseLedger,
    points: Sequence[tuple[UnitPoint, int]],
    *,
    label: str,
    test: bool = False,
) -> list[Trial]:
    """The trials of points (unit, seed) in a phase, run where they are not finished yet."""
    known = {protocol.make_trial_key(trial): trial for trial in ledger.read_trials()}
    generation = ledger.facts.get("generation", 0)
    keys = [
        protocol.make_run_key(ledger.space.to_values(unit), seed, test=test, generation=generation)
        for unit, seed in points
    ]

    def start_missing() -> Iterator[Trial]:
        for (unit, seed), key in zip(points, keys, strict=True):
            if key not in known:
                known[key] = ledger.start(
                    len(known), unit, ledger.space.to_values(unit), seed=seed, test=test
                )
                yield known[key]
            elif known[key].state == "running" and key not in begun:
                yield known[key]
            begun.add(key)

    begun: set[Any] = set()
    done = [known[key] for key in keys if key in known and known[key].state != "running"]
    if len(done) == len(points):
        return [known[key] for key in keys]
    with open_callbacks(
        ledger,
        protocol.logger,
        Show(len(points), label, earlier=done, stop=protocol.stop, logs=False),
    ) as listeners:
        heard = Overheard(listeners)
        account = TrialPolicy(
            ledger, protocol.plan.retries, heard, listeners.on_start, print_message
        )
        for number, trial in enumerate(
            run_trials(start_missing(), protocol.make_reusing_workers(), account), len(done) + 1
        ):
            listeners.on_end(trial, number)
            known[protocol.make_trial_key(trial)] = trial
    return [known[key] for key in keys]


def run_search(
    protocol: Protocol,
    ledger: PhaseLedger,
    plan: Plan,
    *,
    label: str = "search",
    prior: Sequence[Observation] = (),
) -> list[Trial]:
    """The trials of a phase's search, brought to the plan's budget."""
    return run_searches_together(protocol, {label: ledger}, plan, prior=prior)[label]


def run_searches_together(
    protocol: Protocol,
    ledgers: Mapping[str, PhaseLedger],
    plan: Plan,
    *,
    prior: Sequence[Observation] = (),
) -> dict[str, list[Trial]]:
    """The trials of the searches of several phases, each brought to the plan's budget, side by side on the protocol's workers.

    ledgers: by the name that people read.
    """
    budget, trials = plan.budget, {label: ledger.read_trials() for label, ledger in ledgers.items()}
    assert budget is not None
    ended = {
        label: [trial for trial in found if trial.state != "running"]
        for label, found in trials.items()
    }
    left = [label for label, found in trials.items() if len(ended[label]) < max(budget, len(found))]
    for label in left:
        print_message(
            f"{label}: {budget} evaluations"
            + (f", {len(ended[label])} of them done before" if ended[label] else "")
        )
    shows = [
        (ledgers[label], Show(budget, "evaluation", earlier=ended[label], stop=protocol.stop))
        for label in left
    ]
    if left:
        with open_shared_callbacks(shows, protocol.logger) as listeners:
            jobs = []
            for label, heard in zip(left, listeners, strict=True):
                company = Company(
                    heard,
                    protocol.notifier,
                    on_message=print_message if len(ledgers) == 1 else _prefix_messages(label),
                )
                jobs.append(
                    PhaseSearch(
                        ledgers[label],
                        protocol.engine,
                        plan,
                        _make_options(protocol, prior),
                        company,
                    )
                )
            trials |= dict(zip(left, optimize(jobs, protocol.make_reusing_workers()), strict=True))
        check_interrupted()
    for label, found in trials.items():
        if (best := find_best_trial(protocol, found)) is not None:
            print_message(f"{label}: best objective {best.objective:.4f} in trial {best.number}")
    return trials


def _make_options(protocol: Protocol, prior: Sequence[Observation]) -> SearchOptions:
    training = protocol.base.training
    pruner = make_pruner(
        protocol.pruner,
        steps=training.steps,
        evaluations=training.evaluations,
        seed=protocol.engine.seed,
    )
    return SearchOptions(pruner, prior, protocol.stop, protocol.started_at)


def rerun_incumbents(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """The best of a search's trials; with `search.incumbents`, the one of so many whose mean over further seeds is best.

    The best of many noisy evaluations is partly the luckiest: its own value is too good, and another point may be better.
    """
    count, best = int(protocol.base.search.incumbents), find_best_trial(protocol, trials)
    if count < 2 or best is None:
        return best
    rest, chosen = [trial for trial in trials if trial.objective is not None], [best]
    while len(chosen) < count and (
        rest := [trial for trial in rest if trial.unit not in {entry.unit for entry in chosen}]
    ):
        following = find_best_trial(protocol, rest)
        assert following is not None
        chosen.append(following)
    seeds = [
        protocol.seed + int(protocol.base.search.seeds) + number
        for number in range(INCUMBENT_SEEDS)
    ]
    print_message(f"incumbents: {len(chosen)} points on {len(seeds)} more seeds")
    ledger = protocol.make_ledger(
        "incumbents", generation=max(trial.facts["generation"] for trial in trials)
    )
    runs = run_points(
        protocol,
        ledger,
        [(trial.unit, seed) for trial in chosen for seed in seeds],
        label="incumbent run",
    )
    means = [
        _mean_objective(runs[index * len(seeds) : (index + 1) * len(seeds)])
        for index in range(len(chosen))
    ]
    winner, mean = min(zip(chosen, means, strict=True), key=lambda pair: pair[1])
    print_message(
        f"incumbents: trial {winner.number} has the best mean, {mean:.4f} (the search's best, trial {best.number}: {means[0]:.4f})"
    )
    return winner


def _mean_objective(runs: Sequence[Trial]) -> float:
    """The mean objective of runs; infinite when one of them failed."""
    objectives = [run.objective for run in runs if run.objective is not None]
    return statistics.fmean(objectives) if len(objectives) == len(runs) else math.inf


def run_validation(
    protocol: Protocol, before: UnitPoint, after: UnitPoint
) -> list[tuple[Trial, Trial]]:
    """Two points on each fresh seed, test split included; pairs with a failed run are left out, and said."""
    print_message(f"validation: start and best on {len(protocol.seeds)} fresh seeds, test split")
    points = [(unit, seed) for seed in protocol.seeds for unit in (before, after)]
    return pair_runs(
        run_points(
            protocol, protocol.make_ledger("validation"), points, label="validation run", test=True
        )
    )


def pair_runs(runs: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Runs that alternate between two points, as pairs; raises UserError for fewer than two whole ones."""
    pairs = [(runs[index], runs[index + 1]) for index in range(0, len(runs), 2)]
    whole = [pair for pair in pairs if all(trial.state == "complete" for trial in pair)]
    for trial in (trial for pair in pairs for trial in pair if trial.state == "failed"):
        print_message(
            f"the run with seed {trial.facts['seed']} failed and its pair is left out ({trial.reason})"
        )
    if len(whole) < 2:
        raise user_error(
            got=f"{len(whole)} whole pairs of validation runs",
            expected="at least 2",
            do="see the reasons above",
        )
    return whole


def require_objective(trial: Trial) -> float:
    """The objective of a run where a search begins; raises UserError when it failed."""
    if trial.objective is None:
        raise user_error(
            got=f"a failed run where the search begins (trial {trial.number}): {trial.reason}",
            expected="values that train",
            do="mend the configuration and give the study another name",
        )
    return trial.objective
