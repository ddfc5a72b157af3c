"""The progress of a search, which the live table and the lines of trials show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial, find_best
from synaptune.study.database import keys as schema


@dataclass(frozen=True)
class RunningTrial:
    """A running trial.

    Attributes:
        trial: the trial.
        started_at: its start [s, monotonic].
        step: step of the last report; None before the first report.
        value: reported value at this step.
    """

    trial: Trial
    started_at: float
    step: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class SearchInfo:
    """The properties of a search that do not change while it runs.

    Attributes:
        title: name of the study and its phases.
        space: search space.
        label: word for a trial.
        total: number of planned trials; None if unknown.
        maximize: whether larger objectives are better.
        stop: rules that end the search before its total.
        phases: number of searches that are shown as one.
    """

    title: str
    space: Space
    label: str = "trial"
    total: int | None = None
    maximize: bool = False
    stop: StopConfig = field(default_factory=StopConfig)
    phases: int = 1


class SearchProgress:
    """The state of a search.

    One thread updates it and another one reads it, so values are replaced and never modified.

    Attributes:
        best: best complete trial; None if no trial is complete.
        finished: number of ended trials, earlier ones included.
        finished_here: number of trials that ended in this process.
        since_best: number of trials that ended in this process after the best one.
        states: number of ended trials by state.
        failures: number of failed trials by kind of failure.
        seconds: total time of the trials [s].
        generation: largest generation of a trial.
        diagnostics: search distribution of the last generation; None if unknown.
        running: running trials by number.
    """

    def __init__(self, info: SearchInfo, earlier: Sequence[Trial], now: float) -> None:
        """Count the earlier trials.

        Args:
            info: the search.
            earlier: trials that ended before this process started.
            now: the time [s, monotonic].
        """
        self.info, self.started_at = info, now
        self.best: Trial | None = None
        self.diagnostics: Diagnostics | None = None
        self.finished, self.generation, self.seconds = 0, 0, 0.0
        self.states: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.running: dict[int, RunningTrial] = {}
        self.finished_here = self.since_best = 0
        for trial in earlier:
            self.record_foreign_end(trial)

    def record_start(self, trial: Trial, now: float) -> None:
        """Add a running trial; another attempt at it replaces the first one."""
        self.running = self.running | {trial.number: RunningTrial(trial, now)}
        self.generation = max(self.generation, trial.facts.get(schema.GENERATION, 0))

    def record_report(self, trial: Trial, step: int, value: float) -> None:
        """Store the last reported value of a running trial."""
        if (running := self.running.get(trial.number)) is not None:
            running = replace(running, step=step, value=value)
            self.running = self.running | {trial.number: running}

    def record_end(self, trial: Trial) -> None:
        """Count an ended trial."""
        self.running = {
            number: running for number, running in self.running.items() if number != trial.number
        }
        self.finished, self.finished_here = self.finished + 1, self.finished_here + 1
        self.generation = max(self.generation, trial.facts.get(schema.GENERATION, 0))
        self.seconds += float(trial.facts.get(schema.SECONDS, 0.0))
        self.states = self.states + Counter([trial.state])
        if trial.state == "failed":
            self.failures = self.failures + Counter([trial.facts.get(schema.FAILURE, "error")])
        best = find_best(filter(None, (self.best, trial)), self.info.maximize)
        self.since_best = self.since_best + 1 if best is self.best else 0
        self.best = best

    def record_foreign_end(self, trial: Trial) -> None:
        """Count a trial that has ended in another process."""
        here, since_best = self.finished_here, self.since_best
        self.record_end(trial)
        self.finished_here, self.since_best = here, since_best

    @property
    def trials_left(self) -> int | None:
        """Number of planned trials that have not ended; None if unknown."""
        return None if self.info.total is None else max(0, self.info.total - self.finished)

    def get_rate(self, now: float) -> float | None:
        """Return the ended trials per second of this process; None before the first one."""
        seconds = now - self.started_at
        return self.finished_here / seconds if self.finished_here and seconds > 0.0 else None

    def get_seconds_left(self, now: float) -> float | None:
        """Return the time until the last planned trial or `stop.hours` [s]; None if unknown."""
        rate, hours = self.get_rate(now), self.info.stop.hours
        times = [] if rate is None or self.trials_left is None else [self.trials_left / rate]
        times += [] if hours is None else [max(0.0, 3600.0 * hours - (now - self.started_at))]
        return min(times, default=None)


class ProgressCallback(Callback):
    """Records what happens in a search, for the callbacks that show it.

    Attributes:
        progress: the state of the search.
    """

    def __init__(self, info: SearchInfo, earlier: Sequence[Trial] = ()) -> None:
        """Count the earlier trials.

        Args:
            info: the search.
            earlier: trials that ended before this process started.
        """
        self.progress = SearchProgress(info, earlier, time.monotonic())

    def on_start(self, trial: Trial) -> None:
        """Add a running trial."""
        self.progress.record_start(trial, time.monotonic())

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """Store the reported value of a running trial."""
        self.progress.record_report(trial, step, value)

    def on_end(self, trial: Trial, finished: int) -> None:
        """Count an ended trial; the trials of all phases are counted together."""
        self.progress.record_end(trial)

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        """Count a trial that has ended in another process."""
        self.progress.record_foreign_end(trial)
