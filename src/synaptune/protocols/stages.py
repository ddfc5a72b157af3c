"""The stages that protocols share: runs of points, searches, incumbents, validation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from synaptune.config.flat import get_typed_group
from synaptune.core.errors import user_error
from synaptune.protocols.protocol import Protocol, prefix_messages, print_message
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.objective.score import Baseline, needs_baseline, rescore, with_baseline
from synaptune.search.optimizers.base import Observation
from synaptune.search.plan import Plan
from synaptune.search.pruning import make_pruner
from synaptune.search.runner import TrialPolicy, check_interrupted, run_trials
from synaptune.search.space.space import UnitPoint
from synaptune.search.trial import Trial, find_best, is_partial
from synaptune.search.workers.base import Evaluate, InlineWorkers
from synaptune.study.callbacks.base import PhaseTrials, open_callbacks
from synaptune.study.optimize import PhaseSearch, SearchOptions, optimize
from synaptune.study.reader import (
    INCUMBENTS,
    JOINT,
    RECOMMENDED,
    REFERENCE,
    SEARCH,
    get_recommendation,
    identify_trials,
)
from synaptune.study.study import PhaseLedger
from synaptune.training.config import TrainingConfig

if TYPE_CHECKING:
    from synaptune.analysis.results import Evidence

INCUMBENT_SEEDS = 3  # further seeds of incumbents [seed]; chosen: a mean of three


def measure_baseline(
    protocol: Protocol, make_evaluation: Callable[[DictConfig], Evaluate]
) -> Baseline | None:
    """Run the start of the search, where the objective divides by the metrics of that run.

    Args:
        protocol: the protocol; it needs no workers.
        make_evaluation: makes the evaluation of a trial of a configuration.

    Returns:
        The baseline; None where the objective needs none, or has it in its configuration.

    Raises:
        UserError: the run failed.
    """
    if not needs_baseline(protocol.objective):
        return None
    plain = protocol.base.copy()
    plain.objective.name, plain.pruner.name = "val_loss", "none"
    reference = replace(protocol, base=plain, pool=InlineWorkers(make_evaluation(plain)))
    points = [(protocol.space.get_start(), protocol.seed)]
    ledger = reference.make_ledger(REFERENCE)
    (trial,) = run_points(reference, ledger, points, label="reference run")
    require_objective(trial)
    return with_baseline(protocol.objective, trial.facts).baseline


def find_best_trial(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial of a search; None when none is complete.

    Under an objective that changes during the search, all trials are ranked by its last kind.
    """
    config, maximize = protocol.objective, protocol.plan.maximize
    if config.name != "hybrid":
        return find_best(trials, maximize)
    last = max((trial.facts["generation"] for trial in trials), default=0)
    facts = [trial.facts if trial.state == "complete" else None for trial in trials]
    scores = rescore(config, facts, last)
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
    """Run points in a phase, each once: those that the phase already has are not run again.

    Args:
        protocol: the protocol.
        ledger: of the phase.
        points: pairs of a point and a seed.
        label: what the terminal calls a run.
        test: whether the runs score the test split.

    Returns:
        A trial for each point.
    """
    trials = {protocol.make_trial_key(trial): trial for trial in ledger.read_trials()}
    generation = ledger.facts.get("generation", 0)
    keys = [
        protocol.make_run_key(ledger.space.to_values(unit), seed, test=test, generation=generation)
        for unit, seed in points
    ]
    finished = [trials[key] for key in keys if key in trials and trials[key].state != "running"]
    if len(finished) == len(points):
        return finished
    started: set[Any] = set()

    def start_missing() -> Iterator[Trial]:
        for (unit, seed), key in zip(points, keys, strict=True):
            if key not in trials:
                values = ledger.space.to_values(unit)
                trials[key] = ledger.start(len(trials), unit, values, seed=seed, test=test)
                yield trials[key]
            elif trials[key].state == "running" and key not in started:
                yield trials[key]
            started.add(key)

    phase = PhaseTrials(ledger, len(points), finished)
    with open_callbacks(
        [phase],
        protocol.logger,
        label=label,
        stop=protocol.stop,
        logs=False,
        keep=protocol.kept_checkpoints,
    ) as callbacks:
        policy = TrialPolicy(
            ledger, protocol.plan.retries, callbacks=callbacks, on_message=print_message
        )
        runs = run_trials(start_missing(), protocol.make_reusing_workers(), policy)
        for number, trial in enumerate(runs, len(finished) + 1):
            callbacks.on_end(trial, number)
            trials[protocol.make_trial_key(trial)] = trial
    return [trials[key] for key in keys]


def run_search(
    protocol: Protocol,
    ledger: PhaseLedger,
    plan: Plan,
    *,
    label: str | None = "search",
    prior: Sequence[Observation] = (),
) -> list[Trial]:
    """Search a phase until the budget of the plan is spent; return its trials.

    Args:
        protocol: the protocol.
        ledger: of the phase.
        plan: budget of the search.
        label: what messages call the search; None prints none.
        prior: points of an earlier study, for the optimizers that take them.
    """
    searches = {label or ledger.phase: ledger}
    trials = run_searches_together(protocol, searches, plan, prior=prior, quiet=label is None)
    return trials[label or ledger.phase]


def read_evidence(protocol: Protocol) -> Evidence:
    """Read the study of a protocol as its report shows it, without the slow analyses."""
    from synaptune.analysis.evidence import gather_evidence
    from synaptune.study.reader import read_study

    location = protocol.study.location
    return gather_evidence(read_study(location.url, location.name), deep=False)


@contextmanager
def keep_best_file(protocol: Protocol) -> Iterator[None]:
    """Write best.yaml after a search, however it ends, as the report shows it.

    The file says whether its values are validated. A search that continues may find better ones.
    """
    from synaptune.report.tables import render_best_yaml
    from synaptune.study.artifacts import write_text

    try:
        yield
    finally:
        if (text := render_best_yaml(read_evidence(protocol))) is not None:
            write_text(protocol.study.location.folder / "best.yaml", text)


class BestFile(Callback):
    """Replaces best.yaml at each new best of a search, so that it holds it at any moment."""

    def __init__(
        self, protocol: Protocol, ledger: PhaseLedger, trials: Sequence[Trial] = ()
    ) -> None:
        """Begin with the trials that ended before."""
        from synaptune.config.search_space import read_fixed_values

        self.phase = ledger.phase
        self._protocol, self._fixed = protocol, read_fixed_values(protocol.base)
        self._best = find_best(trials, protocol.plan.maximize)

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        self.on_end(trial, 0)

    def on_end(self, trial: Trial, finished: int) -> None:
        from synaptune.study.artifacts import write_best

        known = [self._best] if self._best is not None else []
        best = find_best([*known, trial], self._protocol.plan.maximize)
        if best is not None and best is not self._best:
            self._best = best
            location = self._protocol.study.location
            write_best(location.folder / "best.yaml", location.name, best, self._fixed)


def run_searches_together(
    protocol: Protocol,
    ledgers: Mapping[str, PhaseLedger],
    plan: Plan,
    *,
    prior: Sequence[Observation] = (),
    quiet: bool = False,
) -> dict[str, list[Trial]]:
    """Search several phases side by side on the same workers, each to the budget of the plan.

    Args:
        protocol: the protocol.
        ledgers: of the phases, by what messages call them.
        plan: budget of each search.
        prior: points of an earlier study, for the optimizers that take them.
        quiet: whether to print no messages about begin and best.

    Returns:
        The trials of each phase, by the same names.
    """
    budget = plan.budget
    assert budget is not None
    trials = {label: ledger.read_trials() for label, ledger in ledgers.items()}
    ended = {
        label: [trial for trial in of_phase if trial.state != "running"]
        for label, of_phase in trials.items()
    }
    unfinished = [label for label in trials if len(ended[label]) < max(budget, len(trials[label]))]
    for label in [] if quiet else unfinished:
        before = f", {len(ended[label])} of them done before" if ended[label] else ""
        print_message(f"{label}: {budget} evaluations{before}")
    if unfinished:
        options = _make_options(protocol, prior)
        searches = [
            PhaseSearch(
                ledgers[label],
                protocol.engine,
                plan,
                options,
                print_message if len(ledgers) == 1 else prefix_messages(label),
            )
            for label in unfinished
        ]
        with open_callbacks(
            [PhaseTrials(ledgers[label], budget, ended[label]) for label in unfinished],
            protocol.logger,
            label="trial" if quiet else "evaluation",
            maximize=plan.maximize,
            stop=protocol.stop,
            keep=protocol.kept_checkpoints,
        ) as callbacks:
            workers = protocol.make_reusing_workers()
            files = [
                BestFile(protocol, ledgers[label], ended[label])
                for label in unfinished
                # The scores of a hybrid objective are not of one kind.
                if ledgers[label].phase in (SEARCH, JOINT) and protocol.objective.name != "hybrid"
            ]
            watchers = CallbackList([callbacks, *files])
            results = optimize(searches, workers, watchers, protocol.notifier)
            trials |= dict(zip(unfinished, results, strict=True))
        check_interrupted()
    for label, of_phase in {} if quiet else trials.items():
        if (best := find_best_trial(protocol, of_phase)) is not None:
            print_message(f"{label}: best objective {best.objective:.4f} in trial {best.number}")
    return trials


def _make_options(protocol: Protocol, prior: Sequence[Observation]) -> SearchOptions:
    training = get_typed_group(protocol.base, "training", TrainingConfig)
    pruner = None
    if protocol.pruner.name != "none" and training is not None:
        pruner = make_pruner(
            protocol.pruner, steps=training.steps, evaluations=training.evaluations
        )
    return SearchOptions(pruner, prior, protocol.stop, protocol.started_at)


def rerun_incumbents(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial of a search, or the best of `search.incumbents` points on more seeds.

    The best of many noisy evaluations owes a part of its value to chance, so another point may be
    better.
    """
    count, best = protocol.search.incumbents, find_best_trial(protocol, trials)
    if count < 2 or best is None:
        return best
    incumbents = _choose_incumbents(protocol, trials, best, count)
    first_seed = protocol.seed + protocol.search.seeds
    seeds = range(first_seed, first_seed + INCUMBENT_SEEDS)
    print_message(f"incumbents: {len(incumbents)} points on {len(seeds)} more seeds")
    generation = max(trial.facts["generation"] for trial in trials)
    points = [(trial.unit, seed) for trial in incumbents for seed in seeds]
    ledger = protocol.make_ledger(INCUMBENTS, generation=generation)
    runs = run_points(protocol, ledger, points, label="incumbent run")
    sign = -1.0 if protocol.plan.maximize else 1.0
    losses = [
        _mean_loss(runs[index * len(seeds) : (index + 1) * len(seeds)], sign)
        for index in range(len(incumbents))
    ]
    winner, loss = min(zip(incumbents, losses, strict=True), key=lambda pair: pair[1])
    print_message(
        f"incumbents: trial {winner.number} has the best mean, {sign * loss:.4f}"
        f" (the search's best, trial {best.number}: {sign * losses[0]:.4f})"
    )
    return winner


def choose_trial(protocol: Protocol, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of a search that is validated; None when none is complete.

    It is the recommended one (search/posterior.py), or with `search.incumbents` the best on more
    seeds. The choice is stored in the study and made once for a set of trials.
    """
    best = find_best_trial(protocol, trials)
    ranked = [trial for trial in trials if trial.objective is not None and not is_partial(trial)]
    is_plain = protocol.search.recommend == "posterior" and protocol.objective.name != "hybrid"
    if protocol.search.incumbents > 1 or best is None or not ranked or not is_plain:
        return rerun_incumbents(protocol, trials)
    phase = best.facts["phase"]
    stored = dict(protocol.study.read_note(RECOMMENDED) or {})
    choice = get_recommendation(stored, ranked)
    if choice is None:
        from synaptune.search.posterior import recommend

        sign = -1.0 if protocol.plan.maximize else 1.0
        found = recommend(
            [trial.unit for trial in ranked], [sign * (trial.objective or 0.0) for trial in ranked]
        )
        choice = {
            "of": identify_trials(ranked),
            "trial": ranked[found.index].number,
            "mean": sign * found.mean,
            "deviation": found.deviation,
            "noise": found.noise,
            "observed_best": best.number,
        }
        protocol.study.write_note(RECOMMENDED, stored | {phase: choice})
    if choice["deviation"] is not None:
        observed = "and the best objective"
        if choice["trial"] != best.number:
            observed = f"trial {best.number} the best objective, {best.objective:.4f}"
        print_message(
            f"recommended: trial {choice['trial']} has the best score of a model of all trials"
            f" (posterior mean {choice['mean']:.4f} ± {choice['deviation']:.4f}, noise"
            f" {choice['noise']:.4f}), {observed}"
        )
    return next(trial for trial in ranked if trial.number == choice["trial"])


def _choose_incumbents(
    protocol: Protocol, trials: Sequence[Trial], best: Trial, count: int
) -> list[Trial]:
    """Return the best `count` trials at different points, best first."""
    incumbents = [best]
    rest = [trial for trial in trials if trial.objective is not None and not is_partial(trial)]
    while len(incumbents) < count:
        units = {trial.unit for trial in incumbents}
        rest = [trial for trial in rest if trial.unit not in units]
        following = find_best_trial(protocol, rest)
        if following is None:
            break
        incumbents.append(following)
    return incumbents


def _mean_loss(runs: Sequence[Trial], sign: float) -> float:
    """Return the mean loss of runs; infinity when one of them failed."""
    objectives = [run.objective for run in runs if run.objective is not None]
    return sign * statistics.fmean(objectives) if len(objectives) == len(runs) else math.inf


def run_validation(
    protocol: Protocol, before: UnitPoint, after: UnitPoint
) -> list[tuple[Trial, Trial]]:
    """Run start and best on each fresh seed, test split included, without pairs of failed runs."""
    print_message(f"validation: start and best on {len(protocol.seeds)} fresh seeds, test split")
    points = [(unit, seed) for seed in protocol.seeds for unit in (before, after)]
    ledger = protocol.make_ledger("validation", **protocol.final_length)
    return pair_runs(run_points(protocol, ledger, points, label="validation run", test=True))


def pair_runs(runs: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Return runs that alternate between two points as pairs.

    Raises:
        UserError: fewer than two pairs are complete.
    """
    pairs = [(runs[index], runs[index + 1]) for index in range(0, len(runs), 2)]
    complete = [pair for pair in pairs if all(trial.state == "complete" for trial in pair)]
    for trial in runs:
        if trial.state == "failed":
            print_message(
                f"the run with seed {trial.facts['seed']} failed and its pair is left out"
                f" ({trial.reason})"
            )
    if len(complete) < 2:
        raise user_error(
            got=f"{len(complete)} whole pairs of validation runs",
            expected="at least 2",
            do="see the reasons above",
        )
    return complete


def require_objective(trial: Trial) -> float:
    """Return the objective of a run where a search begins; raise UserError when it failed."""
    if trial.objective is None:
        raise user_error(
            got=f"a failed run where the search begins (trial {trial.number}): {trial.reason}",
            expected="values that train",
            do="correct the configuration and give the study another name",
        )
    return trial.objective
