"""Interface of the workers, and workers that run trials in this process or through a launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

from synaptune.search.trial import Failure, Result, Trial, make_error_result
from synaptune.search.workers.reporting import handle_reports

Evaluate = Callable[[Trial], Result]
OnReport = Callable[[Trial, int, float], bool]


class TrialStopper(Protocol):
    """Decides at each reported value whether a trial should stop."""

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Return whether the trial should stop at this step."""
        ...

    def estimate(self, trial: Trial) -> float | None:
        """Return the extrapolated objective of a stopped trial, or None if too little is known."""
        ...


class NeverStop:
    """Never stops a trial."""

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Return False."""
        return False

    def estimate(self, trial: Trial) -> float | None:
        """Return None."""
        return None


class FinishedTrial(NamedTuple):
    """An ended trial and its result."""

    trial: Trial
    result: Result


# Evaluates a batch of trials; yields each when it ends.
EvaluateBatch = Callable[[Sequence[Trial], OnReport], Iterator[FinishedTrial]]


class Workers(Protocol):
    """Runs up to `count` trials concurrently."""

    count: int

    def start(self, trial: Trial) -> None:
        """Start a trial. The caller ensures that fewer than `count` trials are running."""
        ...

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Wait for trials to end.

        Args:
            on_report: called with (trial, step, value) for each reported value; returns whether the
                trial should stop.

        Returns:
            The ended trials; empty if the wait ended for another reason.
        """
        ...

    def close(self) -> None:
        """Stop all running trials at once. They stay as running in the study."""
        ...


class TrialTimeout(BaseException):
    """A trial of this process exceeded its time limit.

    It derives from BaseException so that an evaluation does not catch it as one of its own errors.
    """


def run_trial(evaluate: Evaluate, trial: Trial, timeout: float | None = None) -> Result:
    """Evaluate a trial in this process.

    Any exception becomes a failed or pruned result, except Ctrl-C. The evaluation gets a copy of
    the trial. The working folder is restored.

    Args:
        evaluate: the evaluation.
        trial: the trial.
        timeout: time limit [s], which applies in the main thread only; None means no limit.
    """
    started_at = time.perf_counter()
    clock = _Clock(timeout)
    try:
        with _keep_folder(), _limit_time(clock), _end_forks():
            result = evaluate(trial.copy())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an objective can raise anything, SystemExit included
        result = make_error_result(error, time.perf_counter() - started_at)
        if result.failure is not None and result.failure.kind == "memory":
            _free_memory(error)
    if clock.is_over:  # also if the objective caught the exception
        failure = make_timeout_failure(timeout or 0.0)
        return Result(None, time.perf_counter() - started_at, failure=failure)
    return result


@contextlib.contextmanager
def _end_forks() -> Iterator[None]:
    """End a process that an evaluation forked and that leaves it: it is no second search."""
    process = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != process:
            _end_process(error)
        raise
    if os.getpid() != process:
        _end_process(None)


def _end_process(error: BaseException | None) -> NoReturn:
    """End this process as Python would, without the clean-up of the process that forked it."""
    code = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    elif error is not None:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code & 0xFF)


def make_timeout_failure(timeout: float) -> Failure:
    """Return the failure of a trial that exceeded its time limit [s]."""
    return Failure("timeout", f"still running after {timeout:g} s (trial.timeout)")


def _free_memory(error: BaseException) -> None:
    """Free the memory of a failed trial: the frames of its traceback, then the device cache."""
    import gc

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass
class _Clock:
    """The time of a trial.

    Attributes:
        limit: time limit [s]; None means no limit.
        is_over: whether the limit was exceeded.
    """

    limit: float | None
    is_over: bool = False


@contextlib.contextmanager
def _limit_time(clock: _Clock) -> Iterator[None]:
    if clock.limit is None or not is_main_thread():
        yield
        return

    def raise_timeout(*_: object) -> None:
        clock.is_over = True
        raise TrialTimeout

    previous_handler = signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, clock.limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous_handler)


def is_main_thread() -> bool:
    """Return whether this is the main thread, the only one that gets signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _keep_folder() -> Iterator[None]:
    """Return to the working folder at the end, if it still exists."""
    folder = None
    with contextlib.suppress(OSError):
        folder = os.getcwd()
    try:
        yield
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(folder)


@dataclass(frozen=True)
class SequentialEvaluation:
    """Evaluates the trials of a batch one after another, in this process.

    Attributes:
        evaluate: the evaluation of a trial.
        timeout: time limit of a trial [s]; None means no limit.
    """

    evaluate: Evaluate
    timeout: float | None = None

    def __call__(self, trials: Sequence[Trial], on_report: OnReport) -> Iterator[FinishedTrial]:
        for trial in trials:
            yield FinishedTrial(trial, self._run(trial, on_report))

    def _run(self, trial: Trial, on_report: OnReport) -> Result:
        errors: list[Exception] = []

        def handle(step: int, value: float) -> bool:
            try:
                return on_report(trial, step, value)
            except Exception as error:
                errors.append(error)
                raise

        with handle_reports(handle):
            result = run_trial(self.evaluate, trial, self.timeout)
        if errors:  # of the search, such as a database that is lost; not of the trial
            raise errors[0]
        return result


class InlineWorkers:
    """Runs one trial at a time in this process.

    Args:
        evaluate: the evaluation.
        timeout: time limit of a trial [s]; None means no limit.
    """

    count = 1

    def __init__(self, evaluate: Evaluate, timeout: float | None = None) -> None:
        self._evaluate = SequentialEvaluation(evaluate, timeout)
        self._next: Trial | None = None

    def start(self, trial: Trial) -> None:
        """Store the trial until `wait_for_trials` runs it."""
        self._next = trial

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Run the stored trial."""
        trial, self._next = self._next, None
        return () if trial is None else tuple(self._evaluate([trial], on_report))

    def close(self) -> None:
        """Do nothing: no trial runs between two calls."""


class NoWorkers:
    """Zero workers, for a setup that precedes the creation of the workers."""

    count = 0

    def start(self, trial: Trial) -> None:
        """Raise AssertionError."""
        raise AssertionError("no workers")

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Return no trial."""
        return ()

    def close(self) -> None:
        """Do nothing."""


class BatchWorkers:
    """Runs trials in batches, e.g. with a Hydra launcher; intermediate values are not reported.

    Args:
        launch: runs a batch of trials and yields their results in order.
        count: number of trials of a batch.
    """

    def __init__(self, launch: Callable[[Sequence[Trial]], Iterator[Result]], count: int) -> None:
        self.count, self._launch = count, launch
        self._waiting: list[Trial] = []

    def start(self, trial: Trial) -> None:
        """Store the trial until `wait_for_trials` runs the batch."""
        self._waiting.append(trial)

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Run the stored batch."""
        batch, self._waiting = self._waiting, []
        return [
            FinishedTrial(trial, result)
            for trial, result in zip(batch, self._launch(batch), strict=True)
        ]

    def close(self) -> None:
        """Do nothing: no trial runs between two calls."""
