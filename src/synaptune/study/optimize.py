"""Searches of a study, put together: optimizer, workers, pruner, warm start; what train.py -m, the protocols and TrialManager share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from synaptune.search.judging import TrialPruner
from synaptune.search.loop import OnEnd, Plan, Search, run_searches
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.diagnostics import Diagnostics, find_health_warnings
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.optimizers.warm_start import EarlierTrial, WarmStart, warm_start
from synaptune.search.pruning import NoPruner, Pruner
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, make_stop_rule
from synaptune.search.trial import Trial, get_loss
from synaptune.search.workers.base import Workers
from synaptune.study.callbacks.base import Listeners, Overheard
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.database import keys as schema
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study


def _ignore(trial: Trial, finished: int) -> None:
    """Watches nothing."""


@dataclass(frozen=True)
class SearchOptions:
    """What changes the course of a search.

    pruner: stops trials by what they report; prior: points of an earlier study, for the optimizers that take them; stop: reasons to
    end before the budget; began: when the command did [s, monotonic], null is with the search.
    """

    pruner: Pruner | None = None
    prior: Sequence[Observation] = ()
    stop: StopConfig = field(default_factory=lambda: StopConfig(plateau=None))
    started_at: float | None = None


@dataclass(frozen=True)
class Company:
    """Who goes along with a search and changes nothing.

    listeners: the terminal and the logs; notifier: tells others of what happens; watch: told every ended trial, and what it raises
    ends the search; say: lines for people.
    """

    listeners: Listeners = field(default_factory=Listeners)
    notifier: Notifier | None = None
    watch: OnEnd = _ignore
    on_message: Callable[[str], None] = print


@dataclass(frozen=True)
class PhaseSearch:
    """A phase of a study to be searched to its budget, from wherever the study has it."""

    ledger: PhaseLedger
    engine: Engine
    plan: Plan
    options: SearchOptions = field(default_factory=SearchOptions)
    company: Company = field(default_factory=Company)


def optimize(searches: Sequence[PhaseSearch], workers: Workers) -> list[list[Trial]]:
    """Search phases side by side on the same workers; returns the trials of each. Raises as search/loop.py does."""
    for notifier in {job.company.notifier for job in searches if job.company.notifier is not None}:
        notifier.reset()
    return run_searches([_build_search(job) for job in searches], workers)


def _build_search(phase_search: PhaseSearch) -> Search:
    ledger, steering, company = phase_search.ledger, phase_search.options, phase_search.company
    optimizer = make_optimizer(phase_search.engine, ledger.space, steering.prior)
    ended = [trial for trial in ledger.read_trials() if trial.state != "running"]
    judge, stop, maximize = None, steering.stop, phase_search.plan.maximize
    if steering.pruner is not None and not isinstance(steering.pruner, NoPruner):
        judge = TrialPruner(
            steering.pruner,
            [(trial, ledger.read_intermediate_values(trial)) for trial in ended],
            maximize=maximize,
        )
    observed = GenerationLog(
        ledger.study.location.folder / _make_file_name(ledger.phase, "generations", "jsonl"),
        company.on_message,
    )

    def notify_watchers(trial: Trial, finished: int) -> None:
        company.listeners.on_end(trial, finished)
        company.watch(trial, finished)

    watch: OnEnd = notify_watchers
    if company.notifier is not None:
        about: Any = {"phase": ledger.phase, "maximize": maximize, "earlier": ended}
        watch = company.notifier.watch(
            notify_watchers, size=optimizer.generation_size, total=phase_search.plan.budget, **about
        )

    def watch_end(trial: Trial, finished: int) -> None:
        if judge is not None:
            judge.on_end(trial)
        ledger.send_heartbeat()
        watch(trial, finished)

    def observe(diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        observed(diagnostics)
        company.listeners.on_generation(diagnostics, members)

    return Search(
        ledger.space,
        phase_search.engine,
        phase_search.plan,
        ledger,
        StateFile(
            ledger.study.location.folder / _make_file_name(ledger.phase, "optimizer", "pkl"),
            phase_search.engine,
            ledger.space.describe(),
        ),
        on_start=company.listeners.on_start,
        on_end=watch_end,
        stopper=Overheard(company.listeners, judge),
        prior=steering.prior,
        on_generation=observe,
        # A grid or a sample is wanted whole: points that follow no loss have no plateau.
        stop_rule=make_stop_rule(
            stop if optimizer.learns else replace(stop, plateau=None),
            maximize=maximize,
            began=steering.started_at,
        ),
        on_message=company.on_message,
    )


def _make_file_name(phase: str, name: str, kind: str) -> str:
    return f"{name}.{kind}" if phase == "search" else f"{name}-{phase}.{kind}"


class GenerationLog:
    """Writes the search distribution of each generation as a line of JSON, and says when its health changes for the worse.

    A generation that was told again after a kill has two lines; the later one counts.
    """

    def __init__(self, path: Path, on_message: Callable[[str], None]) -> None:
        self._path, self._on_message = path, on_message
        self._reported_kinds: set[str] = set()

    def __call__(self, diagnostics: Diagnostics) -> None:
        """Take in a generation."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(diagnostics)) + "\n")
        for warning in find_health_warnings(diagnostics):
            kind = warning.split()[0]
            if kind not in self._reported_kinds:
                self._reported_kinds.add(kind)
                self._on_message(f"generation {diagnostics.generation}: {warning}")


def start_from_study(space: Space, start: str | None, *, maximize: bool = False) -> WarmStart:
    """A space that begins at the best of another study (null: where it is); raises UserError for a study that cannot be begun at."""
    if start is None:
        return WarmStart(space, ())
    trials = find_study(start).search_trials
    return warm_start(
        space, [EarlierTrial(trial.values, get_loss(trial, maximize)) for trial in trials], start
    )


def resume_engine(study: Study, engine: Engine) -> Engine:
    """The engine a study began with: its sequence depends on the first workers, budget and seed, whatever they are now."""
    stored = study.read_note(schema.ENGINE)
    if stored is None:
        study.write_note(schema.ENGINE, asdict(engine))
        return engine
    return Engine(**stored)
