"""Keeps workers busy with trials and writes down how each ends; the part that a search and a list of runs have in common."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from synaptune.core.errors import UserError, user_error
from synaptune.search.callback import CallbackList
from synaptune.search.trial import FATAL_KINDS, Failure, Ledger, Trial
from synaptune.search.workers.base import FinishedTrial, NeverStop, TrialStopper, Workers

# A worker that dies takes a trial with it that may be innocent; a trial that runs out of time or memory would do so again.
_RETRIED_KINDS = ("worker",)


@dataclass
class Interruption:
    """Presses of Ctrl-C: after the first, nothing new starts."""

    pressed: bool = False


_active: list[Interruption] = []  # the one that holds, if there is one


@contextmanager
def catch_interrupts() -> Iterator[Interruption]:
    """Ctrl-C once lets running trials finish, twice stops now; where the key is ignored, or outside the main thread, it stays so.

    Within another one it is that one: a press outlasts the search in which it fell.
    """
    if _active:
        yield _active[-1]
        return
    interruption = Interruption()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield interruption
        return

    def press(*_: object) -> None:
        if interruption.pressed:
            raise KeyboardInterrupt
        interruption.pressed = True
        print(
            "\nCtrl-C: finishing what runs, starting nothing new; once more stops now",
            file=sys.stderr,
            flush=True,
        )

    before = signal.signal(signal.SIGINT, press)
    _active.append(interruption)
    try:
        yield interruption
    finally:
        _active.pop()
        signal.signal(signal.SIGINT, before)


def check_interrupted() -> None:
    """Raise KeyboardInterrupt when Ctrl-C was pressed in the `interruptible` that is under way."""
    if _active and _active[-1].pressed:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class TrialPolicy:
    """What the trials of one phase have in common.

    Attributes:
        ledger: where the trials are written.
        retries: further attempts at a trial whose worker died.
        stopper: decides whether a trial stops at a value that it reports.
        callbacks: the runner calls their `on_start`, at every attempt, and `on_report`.
        on_message: receives lines for people.
    """

    ledger: Ledger
    retries: int = 1
    stopper: TrialStopper = field(default_factory=NeverStop)
    callbacks: CallbackList = field(default_factory=CallbackList)
    on_message: Callable[[str], None] = lambda line: None


class Runner:
    """Starts trials and takes them in as they end, with bounded attempts for those whose worker dies.

    Trials of several accounts may share the workers; their numbers are unique.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._lost: Counter[int] = Counter()
        self._to_user_error: Failure | None = None
        self.running: dict[int, TrialPolicy] = {}

    @property
    def can_start(self) -> bool:
        """Whether another trial can start now; none after a fatal one."""
        return self._to_user_error is None and len(self.running) < self._workers.count

    def start(self, trial: Trial, policy: TrialPolicy) -> None:
        """Run a trial."""
        self.running[trial.number] = policy
        policy.callbacks.on_start(trial)
        self._workers.start(trial)

    def collect_finished(self) -> list[FinishedTrial]:
        """Wait for trials to end and write them down; those tried again are not among them. Call `check` once they are taken in."""
        taken = []
        for trial, result in self._workers.wait_for_trials(self._on_report):
            account = self.running.pop(trial.number)
            cause = result.cause
            if cause is not None and cause.kind in FATAL_KINDS:
                self._to_user_error = cause
                continue
            if (
                cause is not None
                and cause.kind in _RETRIED_KINDS
                and self._lost[trial.number] < account.retries
            ):
                self._lost[trial.number] += 1
                account.on_message(f"trial {trial.number}: {cause.reason}; trying it again")
                self.start(account.ledger.record_retry(trial, cause.reason), account)
                continue
            if result.pruned and result.estimate is None:
                result = replace(result, estimate=account.stopper.estimate(trial))
            taken.append(FinishedTrial(account.ledger.finish(trial, result), result))
        return taken

    def check(self) -> None:
        """Raise UserError when a trial ended by a user's mistake or a full disk: it would fail every trial alike, and stays to be run."""
        if self._to_user_error is not None:
            raise _to_user_error(self._to_user_error)

    def _on_report(self, trial: Trial, step: int, value: float) -> bool:
        account = self.running[trial.number]
        account.ledger.report(trial, value, step)
        account.callbacks.on_report(trial, step, value)
        return account.stopper(trial, step, value)


def _to_user_error(cause: Failure) -> UserError:
    if cause.kind == "disk":
        do = "make room and give the same command; every finished trial is kept"
        return user_error(
            got=f"a full disk: {cause.reason}", expected="space for the trial's files", do=do
        )
    return UserError(cause.reason)


def run_trials(trials: Iterable[Trial], workers: Workers, policy: TrialPolicy) -> Iterator[Trial]:
    """Run trials, each taken when a worker is free for it; yields them as they end. Raises KeyboardInterrupt after Ctrl-C."""
    source, more, runner = iter(trials), True, Runner(workers)
    with catch_interrupts() as interruption:
        while more or runner.running:
            while more and runner.can_start and not interruption.pressed:
                trial = next(source, None)
                more = trial is not None
                if trial is not None:
                    runner.start(trial, policy)
            if interruption.pressed and not runner.running:
                raise KeyboardInterrupt
            for trial, _ in runner.collect_finished() if runner.running else ():
                yield trial
            runner.check()
        if interruption.pressed:
            raise KeyboardInterrupt
