"""Searches of the phases of a study, as train.py -m, the protocols and TrialManager run them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from synaptune.core.moments import compute_deviation, compute_mean
from synaptune.core.terminal import print_line
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.inbox import Inbox
from synaptune.search.loop import Search, run_searches
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.diagnostics import Diagnostics, find_health_warnings
from synaptune.search.optimizers.pbt import PBT
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.optimizers.warm_start import EarlierTrial, WarmStart, warm_start
from synaptune.search.plan import Plan
from synaptune.search.pruning import TrialPruner
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, make_stop_rule
from synaptune.search.trial import Trial, get_loss, is_partial
from synaptune.search.workers.base import NeverStop, Workers
from synaptune.study.additions import StudyInbox
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.database import keys as schema
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        pruner: stops trials by the values that they report; None stops no trial.
        prior: points of an earlier study, for the optimizers that support them.
        stop: rules that end the search before its budget.
        started_at: start of the command [s, monotonic]; None means the start of the search.
        is_stopping: returns whether the program asks the search to end.
    """

    pruner: BasePruner | None = None
    prior: Sequence[Observation] = ()
    stop: StopConfig = field(default_factory=lambda: StopConfig(plateau=None))
    started_at: float | None = None
    is_stopping: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class PhaseSearch:
    """A search of one phase of a study, from its stored trials to its budget.

    Attributes:
        ledger: the trials of the phase.
        engine: settings of the optimizer.
        plan: limits of the search.
        options: options of the search.
        on_message: receives the lines to print.
        trials: the trials of the ledger by index; None means they are read.
    """

    ledger: PhaseLedger
    engine: Engine
    plan: Plan
    options: SearchOptions = field(default_factory=SearchOptions)
    on_message: Callable[[str], None] = print_line
    trials: Sequence[Trial] | None = None


def optimize(
    searches: Sequence[PhaseSearch],
    workers: Workers,
    callbacks: CallbackList | None = None,
    notifier: Notifier | None = None,
) -> list[list[Trial]]:
    """Run concurrent searches on the same workers.

    Args:
        searches: the searches.
        workers: run the trials.
        callbacks: callbacks of all searches.
        notifier: sends the events of all searches.

    Returns:
        The trials of each search.

    Raises:
        UserError, KeyboardInterrupt: see run_searches.
    """
    if notifier is not None:
        notifier.reset()
    callbacks = callbacks or CallbackList()
    return run_searches(
        [_build_search(search, callbacks, notifier) for search in searches], workers
    )


def _build_search(
    phase_search: PhaseSearch, shared: CallbackList, notifier: Notifier | None
) -> Search:
    ledger, options, plan = phase_search.ledger, phase_search.options, phase_search.plan
    optimizer = make_optimizer(phase_search.engine, ledger.space, options.prior)
    is_sliced = phase_search.engine.name == PBT
    trials = ledger.read_trials() if phase_search.trials is None else phase_search.trials
    ended = [trial for trial in trials if trial.state != "running"]
    writer = StudyWriter(ledger, phase_search.on_message, plan.budget)
    writer.write_plan()
    callbacks: list[Callback] = [writer, shared, ledger.study.mirror]
    stopper, stop = NeverStop(), options.stop
    if options.pruner is not None:
        stopper = TrialPruner(
            options.pruner,
            [(trial, ledger.read_intermediate_values(trial)) for trial in ended],
            maximize=plan.maximize,
            seed=phase_search.engine.seed,
        )
        callbacks.insert(0, stopper)
    if notifier is not None:
        callbacks.append(
            notifier.make_callback(
                size=optimizer.generation_size,
                total=plan.budget,
                phase=ledger.phase,
                maximize=plan.maximize,
                earlier=ended,
            )
        )
    # A plateau says nothing about a grid or a sample, whose points do not depend on losses, and
    # nothing about slices, whose losses fall with the training.
    stop_rule = make_stop_rule(
        stop if optimizer.learns and not is_sliced else replace(stop, plateau=None),
        maximize=plan.maximize,
        started_at=options.started_at,
    )
    return Search(
        ledger.space,
        phase_search.engine,
        plan,
        ledger,
        StateFile(
            _make_path(ledger, "optimizer", "pkl"),
            phase_search.engine,
            ledger.space.describe(),
        ),
        callbacks=CallbackList(callbacks),
        stopper=stopper,
        prior=options.prior,
        stop_rule=lambda trials: (
            "stopped by stop()" if options.is_stopping() else stop_rule(trials)
        ),
        on_message=phase_search.on_message,
        trials=trials,
        inbox=Inbox()
        if is_sliced
        else StudyInbox(ledger, phase_search.on_message, maximize=plan.maximize),
    )


def _make_path(ledger: PhaseLedger, name: str, suffix: str) -> Path:
    """Return the path of a file of a phase in the folder of its study."""
    phase = "" if ledger.phase == "search" else f"-{ledger.phase}"
    return ledger.study.location.folder / f"{name}{phase}.{suffix}"


class StudyWriter(Callback):
    """Writes the progress of a search to its study, and prints health warnings.

    It sends heartbeats, stores the budget and the reason of an early end, and writes the search
    distributions.

    Each generation is a line of JSON in `generations.jsonl`: its distribution, the objectives of
    its trials (None for one that has none), their mean and their standard deviation.
    A generation that is repeated after a kill, or by another process of the study, has several
    lines, of which the last one is valid.
    """

    is_required = True

    def __init__(
        self, ledger: PhaseLedger, on_message: Callable[[str], None], budget: int | None
    ) -> None:
        self._ledger, self._on_message, self._budget = ledger, on_message, budget
        self._path = _make_path(ledger, "generations", "jsonl")
        self._reported_kinds: set[str] = set()

    def write_plan(self, stopped: str | None = None) -> None:
        """Store the plan of the search in its study (study/state.py)."""
        study = self._ledger.study
        plans = dict(study.read_note(schema.SEARCHES) or {})
        plan = {"budget": self._budget, "stopped": stopped}
        if plans.get(self._ledger.phase) != plan:
            study.write_note(schema.SEARCHES, plans | {self._ledger.phase: plan})

    def on_stop(self, reason: str) -> None:
        self.write_plan(reason)

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        self._ledger.send_heartbeat()

    def on_end(self, trial: Trial, finished: int) -> None:
        self._ledger.send_heartbeat()

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        losses = [trial.objective for trial in members]
        known = [loss for loss in losses if loss is not None]
        content = asdict(diagnostics) | {
            "population": len(members),
            "losses": losses,
            "mean_loss": compute_mean(known) if known else None,
            "loss_deviation": compute_deviation(known),
        }
        line = json.dumps(content) + "\n"
        with self._path.open("ab", buffering=0) as file:  # in one piece: processes may share it
            file.write(line.encode())
        for warning in find_health_warnings(diagnostics):
            kind = warning.split()[0]
            if kind not in self._reported_kinds:
                self._reported_kinds.add(kind)
                self._on_message(f"generation {diagnostics.generation}: {warning}")


def start_from_study(space: Space, start: str | None, *, maximize: bool = False) -> WarmStart:
    """Return a search space that starts at the best trial of another study, and its points.

    Args:
        space: the search space.
        start: name or folder of the other study; None keeps the start of the space.
        maximize: whether larger objectives are better.

    Raises:
        UserError: the study cannot be read, or has no suitable trial.
    """
    if start is None:
        return WarmStart(space, ())
    trials = find_study(start).search_trials
    earlier = [
        EarlierTrial(trial.values, get_loss(trial, maximize))
        for trial in trials
        if not is_partial(trial)
    ]
    return warm_start(space, earlier, start)


def resume_engine(study: Study, engine: Engine) -> Engine:
    """Return the engine of the first command of a study; store `engine` in a new study.

    The sequence of points depends on the workers, budget and seed of the first command.
    """
    return Engine(**study.write_note_once(schema.ENGINE, asdict(engine)))


def resume_space(space: Space, trials: Sequence[Trial]) -> Space:
    """Return the space with its dimensions in the order that its first trial in the study has.

    Points are stored as coordinates, and a command may name the same parameters in another order.
    """
    for trial in trials:
        if trial.values.keys() == set(space.names):
            return space.reorder(list(trial.values))
    return space
