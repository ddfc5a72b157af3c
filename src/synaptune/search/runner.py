"""Run trials on workers and record how each ends, for searches and for lists of runs."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from synaptune.core.errors import UserError, user_error
from synaptune.core.terminal import print_line
from synaptune.search.callback import CallbackList
from synaptune.search.trial import Failure, FailureKind, Ledger, Trial
from synaptune.search.workers.base import (
    FinishedTrial,
    NeverStop,
    TrialStopper,
    Workers,
    is_main_thread,
)

# The death of a worker need not be caused by its trial. A trial that runs out of time or memory
# would do so again.
_RETRIED_KINDS = ("worker",)


@dataclass
class Interruption:
    """Whether Ctrl-C was pressed; after the first time no new trial starts."""

    is_requested: bool = False


_active: list[Interruption] = []  # the current one, if any


@contextmanager
def catch_interrupts() -> Iterator[Interruption]:
    """Handle Ctrl-C inside the block: once lets running trials finish, twice stops now.

    Nothing changes outside the main thread, or where SIGINT is ignored. A nested block shares the
    Interruption of the outer one, so Ctrl-C during one search also ends the searches after it.
    """
    if _active:
        yield _active[-1]
        return
    interruption = Interruption()
    if not is_main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interruption
        return

    def handle_signal(*_: object) -> None:
        if interruption.is_requested:
            raise KeyboardInterrupt
        interruption.is_requested = True
        print_line(
            "\nCtrl-C: waiting for the running trials, no new ones start; press again to stop now",
            sys.stderr,
        )

    previous_handler = signal.signal(signal.SIGINT, handle_signal)
    _active.append(interruption)
    try:
        yield interruption
    finally:
        _active.pop()
        signal.signal(signal.SIGINT, previous_handler)


def check_interrupted() -> None:
    """Raise KeyboardInterrupt when Ctrl-C was pressed in the current `catch_interrupts` block."""
    if _active and _active[-1].is_requested:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class TrialPolicy:
    """How the trials of a phase are run.

    Attributes:
        ledger: where the trials are written.
        retries: further attempts at a trial whose worker died.
        stopper: decides whether a trial stops at a value that it reports.
        callbacks: the runner calls their `on_start`, at every attempt, and `on_report`.
        on_message: receives the lines to print.
        fatal_kinds: failures that end all trials. A mistake is one of them unless the trials are
            points of a search, where it may lie in one point.
    """

    ledger: Ledger
    retries: int = 1
    stopper: TrialStopper = field(default_factory=NeverStop)
    callbacks: CallbackList = field(default_factory=CallbackList)
    on_message: Callable[[str], None] = lambda line: None
    fatal_kinds: tuple[FailureKind, ...] = ("mistake", "disk")


class Runner:
    """Starts trials, collects those that end, and starts those again whose worker died.

    The number of attempts is limited. Trials with different policies may share the workers; their
    numbers are unique.

    Attributes:
        running: by trial number, the policies of the running trials.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._retries: Counter[int] = Counter()
        self._fatal_failure: Failure | None = None
        self.running: dict[int, TrialPolicy] = {}

    @property
    def can_start(self) -> bool:
        """Whether another trial can start now; False after a fatal failure."""
        return self._fatal_failure is None and len(self.running) < self._workers.count

    def start(self, trial: Trial, policy: TrialPolicy) -> None:
        """Run a trial."""
        self.running[trial.number] = policy
        policy.callbacks.on_start(trial)
        self._workers.start(trial)

    def collect_finished(self) -> list[FinishedTrial]:
        """Wait for trials to end and write them to their ledgers.

        Call `check` after the returned trials are recorded.

        Returns:
            The ended trials, without those that were started again.
        """
        finished = []
        for trial, result in self._workers.wait_for_trials(self._on_report):
            policy = self.running.pop(trial.number)
            cause = result.cause
            if cause is not None and cause.kind in policy.fatal_kinds:
                self._fatal_failure = cause
                continue
            if (
                cause is not None
                and cause.kind in _RETRIED_KINDS
                and self._retries[trial.number] < policy.retries
            ):
                self._retries[trial.number] += 1
                policy.on_message(f"trial {trial.number}: {cause.reason}; trying it again")
                self.start(policy.ledger.record_retry(trial, cause.reason), policy)
                continue
            if result.pruned and result.estimate is None:
                result = replace(result, estimate=policy.stopper.estimate(trial))
            finished.append(FinishedTrial(policy.ledger.finish(trial, result), result))
        return finished

    def check(self) -> None:
        """Raise UserError when a trial failed by one of the fatal kinds of its policy.

        Such a failure would occur in every trial. The trial is not recorded as ended, so it runs
        again when the search continues.
        """
        if self._fatal_failure is not None:
            raise _make_user_error(self._fatal_failure)

    def _on_report(self, trial: Trial, step: int, value: float) -> bool:
        policy = self.running[trial.number]
        policy.ledger.report(trial, value, step)
        policy.callbacks.on_report(trial, step, value)
        return policy.stopper(trial, step, value)


def _make_user_error(cause: Failure) -> UserError:
    if cause.kind == "disk" and not cause.reason.startswith("got "):
        do = "make room and give the same command; every finished trial is kept"
        return user_error(
            got=f"a full disk: {cause.reason}", expected="space for the trial's files", do=do
        )
    return UserError(cause.reason)


def run_trials(trials: Iterable[Trial], workers: Workers, policy: TrialPolicy) -> Iterator[Trial]:
    """Run trials and yield them as they end.

    Args:
        trials: an iterable from which a trial is taken when a worker is free.

    Raises:
        UserError: see Runner.check.
        KeyboardInterrupt: Ctrl-C was pressed; the running trials have ended.
    """
    source, has_more, runner = iter(trials), True, Runner(workers)
    with catch_interrupts() as interruption:
        while has_more or runner.running:
            while has_more and runner.can_start and not interruption.is_requested:
                trial = next(source, None)
                has_more = trial is not None
                if trial is not None:
                    runner.start(trial, policy)
            if interruption.is_requested and not runner.running:
                raise KeyboardInterrupt
            for trial, _ in runner.collect_finished() if runner.running else ():
                yield trial
            runner.check()
        if interruption.is_requested:
            raise KeyboardInterrupt
