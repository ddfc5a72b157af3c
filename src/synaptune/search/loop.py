"""The one loop of every search: ask -> launch -> score -> tell.

It serves every optimizer, every kind of workers and any callable. What is asked is written to the ledger before it starts and
what ends is written once, so that a search killed anywhere goes on with the same points. A new candidate starts as soon as a
worker is free; an optimizer that learns is asked only for the generation under way, and told a generation when it is whole, in
the order of its asks: so the points depend neither on which trial ends first nor on how many run at a time. Several searches may
share the workers: one that waits for the last trial of its generation then keeps none of them idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from synaptune.core.errors import UserError
from synaptune.search.callback import CallbackList
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile, restore_optimizer
from synaptune.search.runner import Runner, TrialPolicy, catch_interrupts
from synaptune.search.space.space import Space
from synaptune.search.trial import Failure, Ledger, Trial, get_loss
from synaptune.search.workers.base import NeverStop, TrialStopper, Workers

# A generation of fewer trials than this says too little about how often trials fail.
_MIN_FAILURE_WINDOW = 4


@dataclass(frozen=True)
class Plan:
    """budget: ended trials in all (failed ones count), null is as many as the optimizer has; max_failure_rate: failed part of a
    generation that is still tolerated; retries: further attempts at a trial whose worker died."""

    budget: int | None
    maximize: bool = False
    max_failure_rate: float = 0.5
    retries: int = 1

    def check(self) -> None:
        """Raise UserError with every fault."""
        found = []
        if self.budget is not None and self.budget < 1:
            found.append(f"budget={self.budget}: expected at least 1 evaluation")
        if not 0.0 <= self.max_failure_rate <= 1.0:
            found.append(f"max_failure_rate={self.max_failure_rate:g}: expected 0 to 1")
        if self.retries < 0:
            found.append(f"retries={self.retries}: expected at least 0")
        if found:
            raise UserError(
                "got a search that cannot run\n  "
                + "\n  ".join(found)
                + "\n  to do: correct these values"
            )


StopRule = Callable[[Sequence[Trial]], str | None]


@dataclass(frozen=True)
class Search:
    """A search to run, from the state in its ledger to the plan's budget.

    Attributes:
        callbacks: called at starts, reports, ends and generations.
        stopper: decides whether a trial stops at a value that it reports.
        prior: points of an earlier study.
        stop_rule: receives the trials of the whole generations; returns a reason to end the
            search, or None.
        on_message: receives lines for people.
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


def run_searches(searches: Sequence[Search], workers: Workers) -> list[list[Trial]]:
    """Run searches side by side, each to its end; returns the trials of each. The one with the fewest running gets a free worker.

    What a search asks does not depend on the others; the numbers of its trials do.
    Raises UserError when too many trials of one fail, when one fails by a user's mistake, or when the disk is full, KeyboardInterrupt
    after Ctrl-C (running trials have then ended).
    """
    courses = [_RunningSearch(search) for search in searches]
    runner, owners = Runner(workers), {}
    with catch_interrupts() as interruption:
        while True:
            for course in courses:
                course.tell_generations()
            while (
                runner.can_start
                and not interruption.pressed
                and (found := _pick_next(courses)) is not None
            ):
                course, trial = found
                owners[trial.number] = course
                runner.start(trial, course.policy)
            if not runner.running:
                if interruption.pressed and not all(course.is_done for course in courses):
                    raise KeyboardInterrupt
                return [course.trials for course in courses]
            for trial, result in runner.collect_finished():
                owners.pop(trial.number).record_end(trial, result.cause)
            runner.check()


def _pick_next(searches: Sequence[_RunningSearch]) -> tuple[_RunningSearch, Trial] | None:
    """The next trial to run, of the search with the fewest running ones, then the fewest at all; null when none may start now."""
    for course in sorted(searches, key=lambda course: (course.running, len(course.trials))):
        trial = course.get_next_trial()
        if trial is not None:
            return course, trial
    return None


class _RunningSearch:
    """Where a search stands: its trials by index, and the generations its optimizer has been told."""

    def __init__(self, search: Search) -> None:
        search.plan.check()
        self._search = search
        self.policy = TrialPolicy(
            search.ledger, search.plan.retries, search.stopper, search.callbacks, search.on_message
        )
        self.trials = search.ledger.read_trials()
        stored = [(self._to_observation(trial), trial.state != "running") for trial in self.trials]
        restored = restore_optimizer(
            search.state_file,
            lambda: make_optimizer(search.engine, search.space, search.prior),
            stored,
        )
        if restored.note:
            search.on_message(restored.note)
        self._optimizer, self._size, self._generations = (
            restored.optimizer,
            restored.optimizer.generation_size,
            restored.generations,
        )
        self._waiting = deque(trial for trial in self.trials if trial.state == "running")
        self._ended, self.running = len(self.trials) - len(self._waiting), 0
        self._ending = self._exhausted = False
        self._failures: list[tuple[Trial, Failure]] = []
        if not self.trials:
            self._save()  # from here on only between generations: a replay begins with the first ask of one

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not self._waiting and (self._ending or self._exhausted or not self._has_budget())

    def _to_observation(self, trial: Trial) -> Observation:
        return Observation(trial.unit, get_loss(trial, self._search.plan.maximize))

    def _save(self) -> None:
        """Snapshot an optimizer that learns; the points of another are its asks alone."""
        if self._optimizer.learns:
            self._search.state_file.save(self._optimizer, self._generations)

    def tell_generations(self) -> None:
        """Tell the optimizer every generation that is whole, and ask whether to go on."""
        while True:
            members = self.trials[
                self._generations * self._size : (self._generations + 1) * self._size
            ]
            if len(members) < self._size or any(trial.state == "running" for trial in members):
                break
            self._optimizer.tell([self._to_observation(trial) for trial in members])
            self._generations += 1
            self._save()
            if (diagnostics := self._optimizer.get_diagnostics()) is not None:
                self._search.callbacks.on_generation(diagnostics, members)
        if not self._ending and (
            reason := self._search.stop_rule(self.trials[: self._generations * self._size])
        ):
            self._search.on_message(f"search: {reason}")
            self._ending = True

    def get_next_trial(self) -> Trial | None:
        """The next trial to run: one that an earlier process left, else a new one; null when none may start now."""
        trial = self._waiting.popleft() if self._waiting else self._create_trial()
        self.running += trial is not None
        return trial

    def _create_trial(self) -> Trial | None:
        if self._ending or not self._has_budget():
            return None
        if self._optimizer.learns and len(self.trials) >= (self._generations + 1) * self._size:
            return None
        unit = self._optimizer.ask()
        if unit is None:
            self._exhausted = True
            return None
        index = len(self.trials)
        trial = self._search.ledger.start(
            index, unit, self._search.space.to_values(unit), index // self._size
        )
        self.trials.append(trial)
        return trial

    def _has_budget(self) -> bool:
        budget = self._search.plan.budget
        return budget is None or len(self.trials) < budget

    def record_end(self, trial: Trial, cause: Failure | None) -> None:
        """Take in an ended trial; raises UserError once a generation, as far as it ran here, has more failed ones than tolerated."""
        self.trials[trial.index] = trial
        self._ended, self.running = self._ended + 1, self.running - 1
        self._search.callbacks.on_end(trial, self._ended)
        if cause is None:
            return
        self._failures.append((trial, cause))
        judged, rate = max(self._size, _MIN_FAILURE_WINDOW), self._search.plan.max_failure_rate
        count = sum(
            earlier.index // judged == trial.index // judged for earlier, _ in self._failures
        )
        if count <= rate * judged:
            return
        first, cause = self._failures[0]
        raise UserError(
            f"got {count} failed trials in one generation of {judged}; the first was trial {first.number}: {cause.reason}\n"
            f"{cause.trace}"
            f"  expected: at most {rate:.0%} (max_failure_rate)\n"
            f"  to do: mend the cause, or allow more failures, and give the same command; every finished trial is kept"
        )
