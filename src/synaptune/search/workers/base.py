"""Where trials run: one contract for this process, a launcher of Hydra's and a pool of worker processes (search/pool.py)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from synaptune.search.trial import Failure, Result, Trial, make_failure
from synaptune.search.workers.reporting import handle_reports

Evaluate = Callable[[Trial], Result]
OnReport = Callable[[Trial, int, float], bool]


class TrialStopper(Protocol):
    """Decides at each value that a trial reports."""

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Whether the trial should stop there."""
        ...

    def estimate(self, trial: Trial) -> float | None:
        """The objective that a trial it stopped was heading for; null when too little is known of it."""
        ...


class NeverStop:
    """Lets every trial end by itself."""

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Never."""
        return False

    def estimate(self, trial: Trial) -> float | None:
        """Of a trial that stopped by itself nothing is known."""
        return None


class FinishedTrial(NamedTuple):
    """A trial that ran, and how it ended."""

    trial: Trial
    result: Result


class Workers(Protocol):
    """Runs up to `count` trials at a time."""

    count: int

    def start(self, trial: Trial) -> None:
        """Begin a trial; there is a free place for it."""
        ...

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Wait until a trial has ended, or something else calls for attention (nothing has ended then).

        hear: told each value a trial reports (trial, step, value); answers whether that trial should stop.
        """
        ...

    def close(self) -> None:
        """End at once whatever still runs; its trials stay as running in the study."""
        ...


class TrialTimeout(BaseException):
    """A trial of this process ran past its time; no evaluation may mistake it for an error of its own."""


def run_trial(evaluate: Evaluate, trial: Trial, timeout: float | None = None) -> Result:
    """One evaluation here; whatever it raises is its result. A timeout [s] holds in the main thread only."""
    began = time.perf_counter()
    try:
        with _limit_time(timeout):
            return evaluate(trial)
    except TrialTimeout:
        return Result(
            None, time.perf_counter() - began, failure=make_timeout_failure(timeout or 0.0)
        )
    except Exception as error:  # the border of a trial: whatever it raises is its own failure, kept with its traceback
        failure = make_failure(error)
        if failure.kind == "memory":
            _free_memory(error)
        return Result(None, time.perf_counter() - began, failure=failure)


def make_timeout_failure(timeout: float) -> Failure:
    """The failure of a trial that ran past its time."""
    return Failure("timeout", f"still running after {timeout:g} s (trial.timeout)")


def _free_memory(error: BaseException) -> None:
    """Let go of what the failed trial holds: its frames, then the device's cache."""
    import gc
    import sys
    import traceback

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _limit_time(timeout: float | None) -> Iterator[None]:
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TrialTimeout

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class InlineWorkers:
    """One trial at a time, in this process."""

    count = 1

    def __init__(self, evaluate: Evaluate, timeout: float | None = None) -> None:
        """timeout: most seconds of a trial."""
        self._evaluate, self._timeout = evaluate, timeout
        self._next: Trial | None = None

    def start(self, trial: Trial) -> None:
        """Keep the trial for `ended`, which runs it."""
        self._next = trial

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Run the trial."""
        trial, self._next = self._next, None
        if trial is None:
            return ()
        with handle_reports(lambda step, value: on_report(trial, step, value)):
            return (FinishedTrial(trial, run_trial(self._evaluate, trial, self._timeout)),)

    def close(self) -> None:
        """Nothing runs between two calls."""


class NoWorkers:
    """No workers at all: for what is set up before there are any."""

    count = 0

    def start(self, trial: Trial) -> None:
        """There is no free place."""
        raise AssertionError("no workers")

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Nothing runs."""
        return ()

    def close(self) -> None:
        """Nothing runs."""


class BatchWorkers:
    """Trials handed on together, such as to a launcher of Hydra's; intermediate values do not come back from there."""

    def __init__(self, launch: Callable[[Sequence[Trial]], Iterator[Result]], count: int) -> None:
        self.count, self._launch = count, launch
        self._waiting: list[Trial] = []

    def start(self, trial: Trial) -> None:
        """Keep the trial for `ended`, which runs all that wait."""
        self._waiting.append(trial)

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Run the batch."""
        batch, self._waiting = self._waiting, []
        return [
            FinishedTrial(trial, result)
            for trial, result in zip(batch, self._launch(batch), strict=True)
        ]

    def close(self) -> None:
        """Nothing runs between two calls."""
