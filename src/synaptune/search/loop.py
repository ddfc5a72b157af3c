"""The loop of every search: ask, launch, score, tell.

The loop serves every optimizer, every kind of workers and any callable. Every trial is written to
the ledger before it starts and once more when it ends, so a search that is killed at any moment
continues with the same points.

A new candidate starts as soon as a worker is free. An optimizer that learns is asked only for the
current generation. It is updated when that generation is complete, in the order in which the
points were asked, so the points do not depend on which trial ends first or on how many run at a
time. Several searches may share the workers; while one waits for the last trial of its generation,
the others use the free workers.

Several processes may run one search. The k-th ask of each of them is for the trial of index k,
which runs in the process that stores it first. The others take it into their list and read how it
ends. All of them learn the same generations in the same order, so their points are those of one
process. An asynchronous optimizer learns every trial when it ends; each of its points has a random
stream of its own and depends on which trials have ended.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from synaptune.core.errors import UserError
from synaptune.model.budget import PARAMETERS, NothingFits
from synaptune.search.callback import CallbackList
from synaptune.search.inbox import Inbox
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile, StoredPoint, restore_optimizer
from synaptune.search.plan import Plan
from synaptune.search.runner import Runner, TrialPolicy, catch_interrupts
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.stopping import StopRule
from synaptune.search.trial import (
    ENQUEUED,
    LEARNED,
    PARENT,
    PROCESS,
    Failure,
    Ledger,
    Trial,
    TrialExistsError,
    describe_failures,
    get_loss,
)
from synaptune.search.workers.base import NeverStop, TrialStopper, Workers

# Least number of consecutive trials over which the failure rate is measured. A smaller generation
# is too small a sample.
_MIN_FAILURE_WINDOW = 4
# Time between two looks at the trials of other processes [s]; chosen: short against a training,
# and a small load for a database.
_POLL_INTERVAL = 0.2


@dataclass(frozen=True)
class Search:
    """A search to run, from the state in its ledger to the plan's budget.

    Attributes:
        state_file: the file with the snapshot of the optimizer.
        callbacks: called at starts, reports, ends and generations.
        stopper: decides whether a trial stops at a value that it reports.
        prior: points of an earlier study.
        stop_rule: receives the trials of the complete generations; returns a reason to end the
            search, or None.
        on_message: receives the lines to print.
        trials: the trials of the ledger by index; None means they are read.
        inbox: enqueued points and imported trials.
    """

    space: Space
    engine: Engine
    plan: Plan
    ledger: Ledger
    state_file: StateFile
    callbacks: CallbackList = field(default_factory=CallbackList)
    stopper: TrialStopper = field(default_factory=NeverStop)
    prior: Sequence[Observation] = ()
    stop_rule: StopRule = lambda trials: None
    on_message: Callable[[str], None] = lambda line: None
    trials: Sequence[Trial] | None = None
    inbox: Inbox = field(default_factory=Inbox)


def run_searches(searches: Sequence[Search], workers: Workers) -> list[list[Trial]]:
    """Run searches side by side, each to its end.

    A free worker goes to the search with the fewest running trials. The points of a search do not
    depend on the other searches, but the numbers of its trials do.

    Returns:
        The trials of each search.

    Raises:
        UserError: too many or all trials of a search failed, or the disk is full.
        KeyboardInterrupt: Ctrl-C was pressed; the running trials have ended.
    """
    running = [_RunningSearch(search) for search in searches]
    runner, owners = Runner(workers), {}
    with catch_interrupts() as interruption:
        while True:
            for search in running:
                search.read_foreign_trials()
                search.update_optimizer()
            while (
                runner.can_start
                and not interruption.is_requested
                and (choice := _pick_next(running)) is not None
            ):
                search, trial = choice
                owners[trial.number] = search
                runner.start(trial, search.policy)
            if not runner.running:
                if interruption.is_requested and not all(search.is_done for search in running):
                    raise KeyboardInterrupt
                if any(search.waits_for_others for search in running):
                    time.sleep(_POLL_INTERVAL)
                    continue
                for search in running:
                    search.check_success()
                return [search.trials for search in running]
            for trial, result in runner.collect_finished():
                owners.pop(trial.number).record_end(trial, result.cause)
            runner.check()


def _pick_next(searches: Sequence[_RunningSearch]) -> tuple[_RunningSearch, Trial] | None:
    """Return the next trial to run and its search; None when no trial may start now.

    Searches with fewer running trials come first, then those with fewer trials in total.
    """
    for search in sorted(searches, key=lambda search: (search.running_count, len(search.trials))):
        trial = search.get_next_trial()
        if trial is not None:
            return search, trial
    return None


class _RunningSearch:
    """The state of a search.

    Attributes:
        trials: the trials by index.
        running_count: number of trials that run now.
    """

    def __init__(self, search: Search) -> None:
        search.plan.check()
        self._search = search
        self.policy = TrialPolicy(
            search.ledger,
            search.plan.retries,
            search.stopper,
            search.callbacks,
            search.on_message,
            fatal_kinds=("disk",),
        )
        self.trials = list(search.ledger.read_trials() if search.trials is None else search.trials)
        stored = [
            StoredPoint(
                self._to_observation(trial), trial.state != "running", trial.facts.get(LEARNED, 0)
            )
            for trial in self.trials
        ]
        self._learned = max((entry.learned for entry in stored), default=0)
        restored = restore_optimizer(
            search.state_file,
            lambda: make_optimizer(search.engine, search.space, search.prior),
            stored,
            search.inbox.read_imported() if self._learned else (),
        )
        # Points that several processes drew asynchronously are never those of one optimizer.
        processes = {trial.facts.get(PROCESS) for trial in self.trials}
        if restored.note and not (restored.optimizer.is_asynchronous and len(processes) > 1):
            search.on_message(restored.note)
        self._optimizer, self._size, self._generations = (
            restored.optimizer,
            restored.optimizer.generation_size,
            restored.generations,
        )
        unfinished = [trial for trial in self.trials if trial.state == "running"]
        self._waiting = deque(filter(search.ledger.owns, unfinished))
        if self._waiting:
            numbers = ", ".join(str(trial.number) for trial in self._waiting)
            search.on_message(
                f"running when their process ended, and started again: {numbers}; if a trial ends"
                " its process each time, use several workers: it then fails alone"
            )
        # Indexes of the trials that run in other processes, and by index the trials of others that
        # this process has not asked for yet.
        self._foreign = {trial.index for trial in unfinished if not search.ledger.owns(trial)}
        self._unasked: dict[int, Trial] = {}
        self._is_asynchronous = bool(self._foreign) and self._optimizer.is_asynchronous
        self._asked: UnitPoint | None = None  # while another process uses its index for its own
        self._told = set(range(self._generations * self._size))
        self._ended_count, self.running_count = len(self.trials) - len(unfinished), 0
        self._is_stopping = self._is_exhausted = False
        self._failures: list[tuple[Trial, Failure]] = []
        if not self.trials:
            # All later snapshots are taken between generations, because a replay starts with the
            # first ask of a generation.
            self._save()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not (self._waiting or self._foreign) and (
            self._is_stopping or self._is_exhausted or not self._has_budget()
        )

    @property
    def waits_for_others(self) -> bool:
        """Whether trials run in other processes."""
        return bool(self._foreign)

    def _to_observation(self, trial: Trial) -> Observation:
        loss = get_loss(trial, self._search.plan.maximize)
        return Observation(trial.unit, loss, is_asked=ENQUEUED not in trial.facts)

    def _save(self) -> None:
        """Save the optimizer if it learns; the points of others follow from the number of asks.

        One that has learned points out of order is rebuilt from the trials.
        """
        if self._optimizer.learns and not self._is_asynchronous:
            self._search.state_file.save(self._optimizer, self._generations)

    def update_optimizer(self) -> None:
        """Update the optimizer with every complete generation, then evaluate the stop rule."""
        if self._is_asynchronous:
            self._tell([trial for trial in self.trials if trial.state != "running"])
        while True:
            members = self.trials[
                self._generations * self._size : (self._generations + 1) * self._size
            ]
            if len(members) < self._size or any(trial.state == "running" for trial in members):
                break
            self._tell(members)
            self._generations += 1
            self._save()
            if (diagnostics := self._optimizer.get_diagnostics()) is not None:
                self._search.callbacks.on_generation(diagnostics, members)
        if not self._is_stopping and (
            reason := self._search.stop_rule(self.trials[: self._generations * self._size])
        ):
            self._search.on_message(f"search: {reason}")
            self._search.callbacks.on_stop(reason)
            self._is_stopping = True

    def _tell(self, trials: Sequence[Trial]) -> None:
        new = [trial for trial in trials if trial.index not in self._told]
        if new:
            self._optimizer.tell([self._to_observation(trial) for trial in new])
            self._asked = None
            self._told.update(trial.index for trial in new)

    def get_next_trial(self) -> Trial | None:
        """Return a trial that another process did not end, else a new one.

        Returns:
            The trial, or None when none may start now.
        """
        while not self._waiting and self._add_trial():
            pass
        if not self._waiting:
            return None
        self.running_count += 1
        return self._waiting.popleft()

    def _add_trial(self) -> bool:
        """Add the trial of the next index, which another process may have stored already.

        Returns:
            Whether there was one to add.
        """
        index = len(self.trials)
        if self._is_stopping or not self._has_budget():
            return False
        end = (self._generations + 1) * self._size
        if self._optimizer.learns and not self._is_asynchronous and index >= end:
            return False
        # Only the points of an asynchronous optimizer do not depend on the number of asks.
        if not (self._is_asynchronous and index in self._unasked) and not self._ask(index):
            return False
        if index in self._unasked:
            self.trials.append(self._unasked.pop(index))
            self._record_foreign(self.trials[index])
            self.update_optimizer()
        return True

    def _ask(self, index: int) -> bool:
        """Find the point of an index, and start its trial unless another process has.

        Enqueued points come before those of the optimizer.

        Returns:
            Whether there is a point.
        """
        self._learn_imported(index)
        if index in self._unasked:
            if ENQUEUED in self._unasked[index].facts:
                return True
        elif (point := self._search.inbox.find_point(self.trials)) is not None:
            return self._start(index, point.unit, **{ENQUEUED: point.key}) or self._ask(index)
        if self._is_asynchronous:
            self._optimizer.reseed(self._search.engine, index)
        unit, self._asked = self._optimizer.ask() if self._asked is None else self._asked, None
        if unit is None:
            self._is_exhausted = True
        elif index not in self._unasked and not self._start(index, unit):
            is_other = ENQUEUED in self._unasked[index].facts and not self._is_asynchronous
            self._asked = unit if is_other else None
        return unit is not None

    def _start(self, index: int, unit: UnitPoint, **facts: Any) -> bool:
        """Start a trial; return whether no other process has started the one of this index."""
        values = self._search.space.to_values(unit)
        if self._learned:
            facts[LEARNED] = self._learned
        facts |= self._optimizer.get_facts(index)
        if (parent := facts.get(PARENT)) is not None:
            facts[PARENT] = self.trials[parent].number
        try:
            trial = self._search.ledger.start(index, unit, values, index // self._size, **facts)
        except TrialExistsError:
            self._is_asynchronous = self._optimizer.is_asynchronous
            self._read_trials()
            return False
        self.trials.append(trial)
        self._waiting.append(trial)
        return True

    def _learn_imported(self, index: int) -> None:
        """Let the optimizer learn new imported trials before the first point of a generation."""
        if not self._optimizer.learns or (index % self._size and not self._is_asynchronous):
            return
        new = self._search.inbox.read_imported(self._learned)
        if new:
            self._optimizer.learn(new)
            self._learned += len(new)
            self._search.on_message(f"search: the optimizer learned {len(new)} imported trials")

    def read_foreign_trials(self) -> None:
        """Read the state of trials of other processes; take over those whose process ended."""
        if self._foreign:
            self._read_trials()

    def _read_trials(self) -> None:
        # Numbers grow with the indexes, so that only the end of a long study is read.
        known = [self.trials[index] for index in self._foreign] or self.trials[-1:]
        first = min((trial.number for trial in known), default=0)
        for trial in self._search.ledger.read_trials(first):
            if trial.index >= len(self.trials):
                self._unasked[trial.index] = trial
            elif trial.index in self._foreign:
                self.trials[trial.index] = trial
                self._record_foreign(trial)

    def _record_foreign(self, trial: Trial) -> None:
        """Record a trial that another process has started."""
        ledger = self._search.ledger
        self._foreign.discard(trial.index)
        if trial.state != "running":
            self._ended_count += 1
            self._search.callbacks.on_foreign_end(trial, ledger.read_intermediate_values(trial))
        elif ledger.owns(trial):
            self._waiting.append(trial)
        else:
            self._foreign.add(trial.index)

    def _has_budget(self) -> bool:
        budget = self._search.plan.budget
        return budget is None or len(self.trials) < budget

    def record_end(self, trial: Trial, cause: Failure | None) -> None:
        """Record an ended trial.

        Raises:
            UserError: a generation has more failed trials than tolerated. Only failures in this
                process count.
        """
        self.trials[trial.index] = trial
        self._ended_count, self.running_count = self._ended_count + 1, self.running_count - 1
        self._search.callbacks.on_end(trial, self._ended_count)
        if cause is None or cause.kind == "budget":  # an answer about the point
            return
        self._failures.append((trial, cause))
        window, rate = max(self._size, _MIN_FAILURE_WINDOW), self._search.plan.max_failure_rate
        count = sum(
            earlier.index // window == trial.index // window for earlier, _ in self._failures
        )
        if count <= rate * window:
            return
        first, cause = self._failures[0]
        raise UserError(
            f"got {count} failed trials in one generation of {window};"
            f" the first was trial {first.number}: {cause.reason}\n"
            f"{cause.trace}"
            f"  expected: at most {rate:.0%} (max_failure_rate)\n"
            "  to do: correct the cause, or allow more failures, and give the same command;"
            " every finished trial is kept"
        )

    def check_success(self) -> None:
        """Raise UserError that names the reasons if every trial of the search failed."""
        if not self.trials or any(trial.state != "failed" for trial in self.trials):
            return
        counts = [trial.facts[PARAMETERS] for trial in self.trials if PARAMETERS in trial.facts]
        if counts and not self._failures:
            raise NothingFits(len(self.trials), int(min(counts)))
        place = _describe_place(self._failures[0][1]) if self._failures else ""
        raise UserError(
            f"got {len(self.trials)} trials, and every one failed\n"
            f"{textwrap.indent(describe_failures(self.trials), '  ')}\n"
            f"{place}"
            "  expected: at least one complete trial\n"
            "  to do: correct the cause (the study holds the tracebacks), then allow more"
            " trials or name another study"
        )


def _describe_place(failure: Failure) -> str:
    """Return a line with the place in the code where an error was raised; "" if it is unknown."""
    frames = re.findall(r'^  File "(.*)", line (\d+), in (.*)$', failure.trace, re.MULTILINE)
    if not frames:
        return ""
    path, line, function = frames[-1]
    return f"  the first was raised in {function}, line {line} of {path}\n"
