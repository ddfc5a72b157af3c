"""Workers that run the trials of a batch together, as one program in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from synaptune.search.trial import Trial
from synaptune.search.workers.base import EvaluateBatch, FinishedTrial, OnReport

POPULATION = "population"
# Trials of a batch where `workers.count` is not set; chosen: the gain grows little beyond it
# (docs/results.md).
DEFAULT_COUNT = 16


class PopulationWorkers:
    """Runs up to `count` trials together; each is returned as soon as it ends.

    A trial that starts while a batch runs belongs to the next batch.

    Args:
        evaluate: evaluates a batch; yields each of its trials when it ends.
        count: number of trials of a batch.
    """

    def __init__(self, evaluate: EvaluateBatch, count: int) -> None:
        self.count, self._evaluate = count, evaluate
        self._waiting: list[Trial] = []
        self._running: Iterator[FinishedTrial] = iter(())

    def start(self, trial: Trial) -> None:
        """Store the trial for the next batch."""
        self._waiting.append(trial)

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Go on with the running batch, or begin the next one, until a trial ends."""
        ended = next(self._running, None)
        if ended is None and self._waiting:
            batch, self._waiting = self._waiting, []
            self._running = self._evaluate(batch, on_report)
            ended = next(self._running, None)
        return () if ended is None else (ended,)

    def close(self) -> None:
        """Stop the running batch; its trials stay as running in the study."""
        close = getattr(self._running, "close", None)
        if close is not None:
            close()
