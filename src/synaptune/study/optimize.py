"""Searches of a study, put together: optimizer, workers, pruner, warm start; what train.py -m, the protocols and TrialManager share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from synaptune.search.judging import Judging
from synaptune.search.loop import Plan, Search, Watch, run_searches
from synaptune.search.optimizers.base import Engine, Told
from synaptune.search.optimizers.diagnostics import Diagnostics, health_warnings
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.optimizers.warm_start import Known, WarmStart, warm_start
from synaptune.search.pruning import NoPruner, Pruner
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, rules
from synaptune.search.trial import Trial, loss_of
from synaptune.search.workers.base import Workers
from synaptune.study.callbacks.base import Listeners, Overheard
from synaptune.study.callbacks.notify import Notifier
from synaptune.study.database import keys as schema
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study


def _nothing(trial: Trial, finished: int) -> None:
    """Watches nothing."""


@dataclass(frozen=True)
class Steering:
    """What changes the course of a search.

    pruner: stops trials by what they report; prior: points of an earlier study, for the optimizers that take them; stop: reasons to
    end before the budget; began: when the command did [s, monotonic], null is with the search.
    """

    pruner: Pruner | None = None
    prior: Sequence[Told] = ()
    stop: StopConfig = field(default_factory=lambda: StopConfig(plateau=None))
    began: float | None = None


@dataclass(frozen=True)
class Company:
    """Who goes along with a search and changes nothing.

    listeners: the terminal and the logs; notifier: tells others of what happens; watch: told every ended trial, and what it raises
    ends the search; say: lines for people.
    """

    listeners: Listeners = field(default_factory=Listeners)
    notifier: Notifier | None = None
    watch: Watch = _nothing
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Job:
    """A phase of a study to be searched to its budget, from wherever the study has it."""

    ledger: PhaseLedger
    engine: Engine
    plan: Plan
    steering: Steering = field(default_factory=Steering)
    company: Company = field(default_factory=Company)


def conduct(jobs: Sequence[Job], workers: Workers) -> list[list[Trial]]:
    """Search phases side by side on the same workers; returns the trials of each. Raises as search/loop.py does."""
    for notifier in {job.company.notifier for job in jobs if job.company.notifier is not None}:
        notifier.begin()
    return run_searches([_search(job) for job in jobs], workers)


def _search(job: Job) -> Search:
    ledger, steering, company = job.ledger, job.steering, job.company
    optimizer = make_optimizer(job.engine, ledger.space, steering.prior)
    ended = [trial for trial in ledger.trials() if trial.state != "running"]
    judge, stop, maximize = None, steering.stop, job.plan.maximize
    if steering.pruner is not None and not isinstance(steering.pruner, NoPruner):
        judge = Judging(steering.pruner, [(trial, ledger.intermediate(trial)) for trial in ended], maximize=maximize)
    observed = Generations(ledger.study.place.folder / _file(ledger.phase, "generations", "jsonl"), company.say)

    def told(trial: Trial, finished: int) -> None:
        company.listeners.ended(trial, finished)
        company.watch(trial, finished)

    watch: Watch = told
    if company.notifier is not None:
        about: Any = {"phase": ledger.phase, "maximize": maximize, "earlier": ended}
        watch = company.notifier.watch(told, size=optimizer.generation_size, total=job.plan.budget, **about)

    def watched(trial: Trial, finished: int) -> None:
        if judge is not None:
            judge.ended(trial)
        ledger.beat()
        watch(trial, finished)

    def observe(diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        observed(diagnostics)
        company.listeners.generation(diagnostics, members)

    return Search(
        ledger.space,
        job.engine,
        job.plan,
        ledger,
        StateFile(ledger.study.place.folder / _file(ledger.phase, "optimizer", "pkl"), job.engine, ledger.space.describe()),
        started=company.listeners.started,
        watch=watched,
        judge=Overheard(company.listeners, judge),
        prior=steering.prior,
        observe=observe,
        # A grid or a sample is wanted whole: points that follow no loss have no plateau.
        stop=rules(stop if optimizer.learns else replace(stop, plateau=None), maximize=maximize, began=steering.began),
        say=company.say,
    )


def _file(phase: str, name: str, kind: str) -> str:
    return f"{name}.{kind}" if phase == "search" else f"{name}-{phase}.{kind}"


class Generations:
    """Writes the search distribution of each generation as a line of JSON, and says when its health changes for the worse.

    A generation that was told again after a kill has two lines; the later one counts.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._said: set[str] = set()

    def __call__(self, diagnostics: Diagnostics) -> None:
        """Take in a generation."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(diagnostics)) + "\n")
        for warning in health_warnings(diagnostics):
            kind = warning.split()[0]
            if kind not in self._said:
                self._said.add(kind)
                self._say(f"generation {diagnostics.generation}: {warning}")


def begun_at(space: Space, start: str | None, *, maximize: bool = False) -> WarmStart:
    """A space that begins at the best of another study (null: where it is); raises UserError for a study that cannot be begun at."""
    if start is None:
        return WarmStart(space, ())
    trials = find_study(start).searched
    return warm_start(space, [Known(trial.values, loss_of(trial, maximize)) for trial in trials], start)


def resumed_engine(study: Study, engine: Engine) -> Engine:
    """The engine a study began with: its sequence depends on the first workers, budget and seed, whatever they are now."""
    stored = study.note(schema.ENGINE)
    if stored is None:
        study.put_note(schema.ENGINE, asdict(engine))
        return engine
    return Engine(**stored)
