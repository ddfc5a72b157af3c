"""The loop of every search: ask, launch, score, tell.

The loop serves every optimizer, every kind of workers and any callable. Every trial is written to
the ledger before it starts and once more when it ends, so a search that is killed at any moment
continues with the same points.

A new candidate starts as soon as a worker is free. An optimizer that learns is asked only for the
current generation. It is updated when that generation is complete, in the order in which the
points were asked, so the points do not depend on which trial ends first or on how many run at a
time. Several searches may share the workers; while one waits for the last trial of its generation,
the others use the free workers.
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
from synaptune.search.stopping import StopRule
from synaptune.search.trial import Failure, Ledger, Trial, describe_failures, get_loss
from synaptune.search.workers.base import NeverStop, TrialStopper, Workers

# Least number of consecutive trials over which the failure rate is measured. A smaller generation
# is too small a sample.
_MIN_FAILURE_WINDOW = 4


@dataclass(frozen=True)
class Plan:
    """The limits of a search.

    Attributes:
        budget: total number of ended trials, failed ones included; None means until the optimizer
            has no more points.
        maximize: whether a larger objective is better.
        max_failure_rate: largest tolerated fraction of failed trials in a generation [0..1].
        retries: further attempts at a trial whose worker died.
    """

    budget: int | None
    maximize: bool = False
    max_failure_rate: float = 0.5
    retries: int = 1

    def check(self) -> None:
        """Raise UserError that lists every invalid value."""
        faults = []
        if self.budget is not None and self.budget < 1:
            faults.append(f"budget={self.budget}: expected at least 1 evaluation")
        if not 0.0 <= self.max_failure_rate <= 1.0:
            faults.append(f"max_failure_rate={self.max_failure_rate:g}: expected 0 to 1")
        if self.retries < 0:
            faults.append(f"retries={self.retries}: expected at least 0")
        if faults:
            raise UserError(
                "got a search that cannot run\n  "
                + "\n  ".join(faults)
                + "\n  to do: correct these values"
            )


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
        self._ended_count, self.running_count = len(self.trials) - len(self._waiting), 0
        self._is_stopping = self._is_exhausted = False
        self._failures: list[tuple[Trial, Failure]] = []
        if not self.trials:
            # All later snapshots are taken between generations, because a replay starts with the
            # first ask of a generation.
            self._save()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not self._waiting and (
            self._is_stopping or self._is_exhausted or not self._has_budget()
        )

    def _to_observation(self, trial: Trial) -> Observation:
        return Observation(trial.unit, get_loss(trial, self._search.plan.maximize))

    def _save(self) -> None:
        """Save the optimizer if it learns; the points of others follow from the number of asks."""
        if self._optimizer.learns:
            self._search.state_file.save(self._optimizer, self._generations)

    def update_optimizer(self) -> None:
        """Update the optimizer with every complete generation, then evaluate the stop rule."""
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
        if not self._is_stopping and (
            reason := self._search.stop_rule(self.trials[: self._generations * self._size])
        ):
            self._search.on_message(f"search: {reason}")
            self._search.callbacks.on_stop(reason)
            self._is_stopping = True

    def get_next_trial(self) -> Trial | None:
        """Return a trial that an earlier process did not end, else a new one.

        Returns:
            The trial, or None when none may start now.
        """
        trial = self._waiting.popleft() if self._waiting else self._create_trial()
        self.running_count += trial is not None
        return trial

    def _create_trial(self) -> Trial | None:
        if self._is_stopping or not self._has_budget():
            return None
        if self._optimizer.learns and len(self.trials) >= (self._generations + 1) * self._size:
            return None
        unit = self._optimizer.ask()
        if unit is None:
            self._is_exhausted = True
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
        """Record an ended trial.

        Raises:
            UserError: a generation has more failed trials than tolerated. Only failures in this
                process count.
        """
        self.trials[trial.index] = trial
        self._ended_count, self.running_count = self._ended_count + 1, self.running_count - 1
        self._search.callbacks.on_end(trial, self._ended_count)
        if cause is None:
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
        trace = self._failures[0][1].trace if self._failures else ""
        frames = [line for line in trace.splitlines() if line.startswith("  File ")]
        lines = [f"  {line}" for line in describe_failures(self.trials).splitlines()]
        raise UserError(
            "\n".join(
                [
                    f"got {len(self.trials)} trials, and every one failed",
                    *lines,
                    *frames[-1:],
                    "  expected: at least one complete trial",
                    "  to do: correct the cause (the study holds the tracebacks), then allow more"
                    " trials or name another study",
                ]
            )
        )
