"""Searches of a study, put together: optimizer, workers, pruner, warm start.

What train.py -m, the protocols and TrialManager share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from synaptune.core.terminal import print_line
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.loop import Plan, Search, run_searches
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.diagnostics import Diagnostics, find_health_warnings
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.optimizers.warm_start import EarlierTrial, WarmStart, warm_start
from synaptune.search.pruning import TrialPruner
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, make_stop_rule
from synaptune.search.trial import Trial, get_loss
from synaptune.search.workers.base import NeverStop, Workers
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.database import keys as schema
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


@dataclass(frozen=True)
class SearchOptions:
    """What changes the course of a search.

    Attributes:
        pruner: stops trials by the values that they report; None stops no trial.
        prior: points of an earlier study, for the optimizers that take them.
        stop: reasons to end before the budget.
        started_at: start of the command [s, monotonic]; None means the start of the search.
    """

    pruner: BasePruner | None = None
    prior: Sequence[Observation] = ()
    stop: StopConfig = field(default_factory=lambda: StopConfig(plateau=None))
    started_at: float | None = None


@dataclass(frozen=True)
class PhaseSearch:
    """A phase of a study to search to its budget, from its state in the study.

    Attributes:
        on_message: receives lines for people.
    """

    ledger: PhaseLedger
    engine: Engine
    plan: Plan
    options: SearchOptions = field(default_factory=SearchOptions)
    on_message: Callable[[str], None] = print_line


def optimize(
    searches: Sequence[PhaseSearch],
    workers: Workers,
    callbacks: CallbackList | None = None,
    notifier: Notifier | None = None,
) -> list[list[Trial]]:
    """Search phases side by side on the same workers.

    Returns:
        The trials of each phase.

    Raises:
        as search/loop.py does.
    """
    if notifier is not None:
        notifier.reset()
    shared = callbacks or CallbackList()
    return run_searches([_build_search(job, shared, notifier) for job in searches], workers)


def _build_search(
    phase_search: PhaseSearch, shared: CallbackList, notifier: Notifier | None
) -> Search:
    ledger, options, plan = phase_search.ledger, phase_search.options, phase_search.plan
    optimizer = make_optimizer(phase_search.engine, ledger.space, options.prior)
    ended = [trial for trial in ledger.read_trials() if trial.state != "running"]
    callbacks: list[Callback] = [StudyWriter(ledger, phase_search.on_message), shared]
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
        # A grid or a sample is run whole: points that do not follow the losses have no plateau.
        stop_rule=make_stop_rule(
            stop if optimizer.learns else replace(stop, plateau=None),
            maximize=plan.maximize,
            began=options.started_at,
        ),
        on_message=phase_search.on_message,
    )


def _make_path(ledger: PhaseLedger, name: str, kind: str) -> Path:
    """The path of a file in the study's folder that belongs to a phase."""
    phase = "" if ledger.phase == "search" else f"-{ledger.phase}"
    return ledger.study.location.folder / f"{name}{phase}.{kind}"


class StudyWriter(Callback):
    """Keeps the heartbeat of a study, writes its search distributions and prints health warnings.

    Each generation is a line of JSON in `generations.jsonl`. A generation that comes twice after a
    kill has two lines; the later one counts.
    """

    is_required = True

    def __init__(self, ledger: PhaseLedger, on_message: Callable[[str], None]) -> None:
        self._ledger, self._on_message = ledger, on_message
        self._path = _make_path(ledger, "generations", "jsonl")
        self._reported_kinds: set[str] = set()

    def on_end(self, trial: Trial, finished: int) -> None:
        self._ledger.send_heartbeat()

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(diagnostics)) + "\n")
        for warning in find_health_warnings(diagnostics):
            kind = warning.split()[0]
            if kind not in self._reported_kinds:
                self._reported_kinds.add(kind)
                self._on_message(f"generation {diagnostics.generation}: {warning}")


def start_from_study(space: Space, start: str | None, *, maximize: bool = False) -> WarmStart:
    """A space that begins at the best of another study (null: where it is).

    Raises UserError for a study that cannot be begun at.
    """
    if start is None:
        return WarmStart(space, ())
    trials = find_study(start).search_trials
    return warm_start(
        space, [EarlierTrial(trial.values, get_loss(trial, maximize)) for trial in trials], start
    )


def resume_engine(study: Study, engine: Engine) -> Engine:
    """The engine a study began with: its sequence depends on the first workers, budget and seed,
    whatever they are now.
    """
    stored = study.read_note(schema.ENGINE)
    if stored is None:
        study.write_note(schema.ENGINE, asdict(engine))
        return engine
    return Engine(**stored)


def resume_space(study: Study, space: Space) -> Space:
    """Return the space with its dimensions in the order that its first trial in the study has.

    Points are stored as coordinates, and a command may name the same parameters in another order.
    """
    for trial in study.read_trials():
        if sorted(trial.values) == sorted(space.names):
            return space.reorder(list(trial.values))
    return space
